#pragma once

#include <io/fitted_data.hpp>
#include <kvcondense/io/aquakv.hpp>
#include <kvcondense/quant/aquakv_fit.hpp>

namespace kvcondense::test {

/// All heads of a token side by side: [tokens, channels].
inline std::vector<float> token_rows(const Rows4& x, io::KvSide side, index_t layer) {
  const auto from = x.rows(side, layer);
  std::vector<float> rows;
  for (index_t t = 0; t < x.tokens; ++t)
    for (index_t h = 0; h < x.shape.kv_heads; ++h)
      for (index_t d = 0; d < x.dim(side); ++d) rows.push_back(from(h, t, d));
  return rows;
}

/// Rows of which every layer is a linear map of the layer below, and `beside` of its own.
inline Rows4 of_layers(const CacheShape& shape, index_t tokens, float beside, std::uint64_t seed = 1, std::uint64_t model = 99) {
  Rows4 x(shape, tokens, seed);
  const auto below_of = [&](io::KvSide side, index_t layer) { return token_rows(x, side, layer); };
  for (index_t l = 1; l < shape.layers; ++l)
    for (const io::KvSide side : {io::KvSide::keys, io::KvSide::values}) {
      const index_t dim = x.dim(side), channels = shape.kv_heads * dim;
      std::vector<float> from = below_of(side, l - 1);
      index_t inputs = channels;
      if (side == io::KvSide::values) {  // and of the layer's own keys
        const auto keys = below_of(io::KvSide::keys, l);
        const index_t more = shape.kv_heads * shape.head_dim;
        std::vector<float> both;
        for (index_t t = 0; t < tokens; ++t) {
          both.insert(both.end(), keys.begin() + t * more, keys.begin() + (t + 1) * more);
          both.insert(both.end(), from.begin() + t * channels, from.begin() + (t + 1) * channels);
        }
        from = both, inputs += more;
      }
      std::vector<float> map(static_cast<std::size_t>(inputs * channels));
      fill_normal(map.data(), map.size(), model + static_cast<std::uint64_t>(2 * l + (side == io::KvSide::keys ? 0 : 1)));
      auto& to = side == io::KvSide::keys ? x.keys : x.values;
      for (index_t t = 0; t < tokens; ++t)
        for (index_t c = 0; c < channels; ++c) {
          float sum = 0.5f;
          for (index_t i = 0; i < inputs; ++i)
            sum += from[static_cast<std::size_t>(t * inputs + i)] * map[static_cast<std::size_t>(i * channels + c)] / std::sqrt(static_cast<float>(inputs));
          float& at = to[static_cast<std::size_t>(((l * shape.kv_heads + c / dim) * tokens + t) * dim + c % dim)];
          at = static_cast<float>(half(sum + beside * at));
        }
    }
  return x;
}

/// Maps of made-up text, with their arrays.
struct ModelMaps {
  std::vector<float> first[2], maps[2];
  index_t layers = 0, channels[2] = {};
  KeyForm form = KeyForm::rotated;

  explicit ModelMaps(const Rows4& x, const quant::Aquakv& method = {}) : layers(x.shape.layers) {
    std::vector<float> below[2];
    for (index_t l = 0; l < layers; ++l)
      for (const io::KvSide side : {io::KvSide::keys, io::KvSide::values}) {
        const auto s = static_cast<std::size_t>(side);
        channels[s] = x.shape.kv_heads * x.dim(side);
        std::vector<float> rows = token_rows(x, side, l), from;
        for (index_t t = 0; t < x.tokens && l > 0; ++t)
          for (std::size_t part = 0; part <= s; ++part)
            from.insert(from.end(), below[part].begin() + t * channels[part], below[part].begin() + (t + 1) * channels[part]);
        const index_t inputs = l == 0 ? 0 : channels[0] + (s == 1 ? channels[1] : 0);
        std::vector<float> map(static_cast<std::size_t>((inputs + 1) * channels[s]));
        REQUIRE(quant::fit_aquakv_side(method, s == 0, l, {from.data(), {x.tokens, inputs}, {inputs, 1}},
                                       {rows.data(), {x.tokens, channels[s]}, {channels[s], 1}}, map) == Status::ok);
        (l == 0 ? first[s] : maps[s]).insert((l == 0 ? first[s] : maps[s]).end(), map.begin(), map.end());
        below[s] = std::move(rows);
      }
  }
  /// That say nothing: every layer is around 0.
  static ModelMaps none(const Rows4& x) {
    ModelMaps m(x);
    for (auto* arrays : {m.first, m.maps})
      for (const int s : {0, 1}) std::fill(arrays[s].begin(), arrays[s].end(), 0.0f);
    return m;
  }

  LayerMaps view() const {
    return {first[0].data(), first[1].data(), maps[0].data(), maps[1].data(), layers, channels[0], channels[1], form};
  }
  io::AquakvMaps of(const CacheShape& shape) const {
    const auto m = io::AquakvMaps::make(view(), shape);
    REQUIRE(m.status() == Status::ok);
    return *m;
  }
};

inline Bytes aquakv_chunk(const Rows4& x, const quant::Aquakv& method, const io::AquakvMaps& maps, const prim::RopeTable* rope = nullptr,
                          bool exact = false, const io::StreamPlace& place = {}) {
  return chunk_of<io::AquakvWriter>(x, method, maps, rope, exact, place);
}

inline Decoded decode_all(const io::AquakvReader& chunk, Status& s) {
  Workspace work;
  return decode_parts(chunk.head(), s, [&](index_t l, io::KvSide side, index_t sub, auto out) {
    REQUIRE(work.reserve(chunk.scratch_bytes()) == Status::ok);
    return chunk.decode(l, side, sub, out, Scratch(work.bytes()));
  });
}
inline Decoded decode_all(const Bytes& bytes, const io::AquakvMaps& maps, const prim::RopeTable* rope = nullptr) {
  return decode_whole(io::AquakvReader::open(bytes, maps, rope), bytes, [](const auto& c, Status& s) { return decode_all(c, s); });
}

}  // namespace kvcondense::test
