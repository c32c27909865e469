// Chunks of AQUA-KV.

#include <limits>

#include <io/aquakv_data.hpp>
#include <support/memory.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using io::AquakvMaps;
using io::AquakvReader;
using io::AquakvWriter;
using io::KvSide;
using quant::Aquakv;
using quant::EntropyCoder;

namespace {

const CacheShape small{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 8, .value_dim = 16};

Aquakv with(int bits, EntropyCoder coder = EntropyCoder::range) {
  return {.key_bits = bits, .value_bits = bits, .sub_chunk = 32, .coder = coder};
}

/// Square error of one layer's keys or values, over the square of the numbers.
double lost(const Rows4& x, const Decoded& d, KvSide side, index_t layer) {
  const auto& all = side == KvSide::keys ? x.keys : x.values;
  const auto& back = side == KvSide::keys ? d.keys : d.values;
  const auto n = static_cast<std::ptrdiff_t>(all.size()) / x.shape.layers;
  const std::vector<float> a(all.begin() + layer * n, all.begin() + (layer + 1) * n), b(back.begin() + layer * n, back.begin() + (layer + 1) * n);
  return square_distance(a, b) / square_distance(a, std::vector<float>(a.size()));
}

}  // namespace

TEST_CASE("aquakv chunk: what maps say of a layer need not be coded, in keys and values", "[io][aquakv]") {
  const Rows4 calibration = of_layers(small, 400, 0.05f, 7), x = of_layers(small, 100, 0.05f, 8);
  const ModelMaps model(calibration), none = ModelMaps::none(calibration);
  const Decoded d = decode_all(aquakv_chunk(x, with(2), model.of(small)), model.of(small));
  const Decoded direct = decode_all(aquakv_chunk(x, with(2), none.of(small)), none.of(small));
  for (const KvSide side : {KvSide::keys, KvSide::values})
    for (const index_t l : {1, 2}) {
      CAPTURE(l, static_cast<int>(side), lost(x, direct, side, l), lost(x, d, side, l));
      REQUIRE(lost(x, direct, side, l) > 0.02);
      REQUIRE(lost(x, d, side, l) < 0.15 * lost(x, direct, side, l));
    }
  // Values follow from keys of their own layer: with those rows of the map gone, they do not.
  ModelMaps blind = model;
  for (index_t l = 0; l < 2; ++l)
    std::fill_n(blind.maps[1].begin() + l * blind.view().value_numbers(), 16 * 32, 0.0f);
  const Decoded e = decode_all(aquakv_chunk(x, with(2), blind.of(small)), blind.of(small));
  REQUIRE(e.keys == d.keys);
  REQUIRE(lost(x, e, KvSide::values, 1) > 2 * lost(x, d, KvSide::values, 1));
}

TEST_CASE("aquakv chunk: errors do not add up from layer to layer", "[io][aquakv]") {
  CacheShape deep = small;
  deep.layers = 12;
  const Rows4 calibration = of_layers(deep, 400, 0.3f, 7), x = of_layers(deep, 100, 0.3f, 8);
  const ModelMaps model(calibration);
  const Decoded d = decode_all(aquakv_chunk(x, with(2), model.of(deep)), model.of(deep));
  for (const KvSide side : {KvSide::keys, KvSide::values}) REQUIRE(lost(x, d, side, 11) < 3 * lost(x, d, side, 2));
}

TEST_CASE("aquakv chunk: more bits err less and take more bytes, of the side and the layer that they are of", "[io][aquakv]") {
  const auto coder = GENERATE(EntropyCoder::range, EntropyCoder::rans);
  const Rows4 calibration = of_layers(small, 400, 0.5f, 9), x = of_layers(small, 200, 0.5f);
  const ModelMaps model(calibration);
  const auto maps = model.of(small);
  double last = HUGE_VAL;
  std::size_t bytes = 0;
  for (const int bits : {2, 3, 4}) {
    const Bytes chunk = aquakv_chunk(x, with(bits, coder), maps);
    const Decoded d = decode_all(chunk, maps);
    const double error = square_distance(x.keys, d.keys) + square_distance(x.values, d.values);
    REQUIRE(error < last);
    REQUIRE(chunk.size() > bytes);
    last = error, bytes = chunk.size();
  }
  const auto all = [&](const Aquakv& m) { return decode_all(aquakv_chunk(x, m, maps), maps); };
  Aquakv keys = with(2, coder), values = with(2, coder), first = with(2, coder);
  keys.key_bits = 4, values.value_bits = 4, first.first_bits = 2;
  const Decoded usual = all(with(2, coder)), k = all(keys), v = all(values), f = all(first);
  REQUIRE(lost(x, k, KvSide::keys, 1) < 0.5 * lost(x, usual, KvSide::keys, 1));
  REQUIRE(v.keys == usual.keys);
  REQUIRE(lost(x, v, KvSide::values, 1) < 0.5 * lost(x, usual, KvSide::values, 1));
  REQUIRE(lost(x, f, KvSide::keys, 0) > 4 * lost(x, usual, KvSide::keys, 0));
}

TEST_CASE("aquakv chunk: shapes of all kinds, from one token on", "[io][aquakv]") {
  struct Sizes {
    index_t heads, dim, values;
  };
  for (const auto& [heads, dim, values] : {Sizes{1, 80, 16}, {1, 4, 0}, {2, 96, 112}, {1, 256, 0}, {16, 4, 8}, {16, 3, 7}}) {
    const CacheShape shape{.layers = 2, .q_heads = 16, .kv_heads = heads, .head_dim = dim, .value_dim = values};
    const ModelMaps model{Rows4(shape, 20, 3)};
    const auto maps = model.of(shape);
    for (const index_t tokens : {0, 1, 31, 32, 33, 70}) {
      const Rows4 x(shape, tokens);
      const Decoded d = decode_all(aquakv_chunk(x, with(4), maps), maps), e = decode_all(aquakv_chunk(x, with(4, EntropyCoder::rans), maps), maps);
      REQUIRE(d == e);
      REQUIRE(d.keys.size() == x.keys.size());
      REQUIRE(d.values.size() == x.values.size());
      for (const float v : d.keys) REQUIRE(std::isfinite(v));
      if (tokens > 0) REQUIRE(square_distance(x.keys, d.keys) < 0.1 * square_distance(x.keys, std::vector<float>(x.keys.size())));
      const Decoded exact = decode_all(aquakv_chunk(x, with(4), maps, nullptr, true), maps);
      REQUIRE(exact.keys == x.keys);  // these are numbers of 16 bits
      REQUIRE(exact.values == x.values);
    }
  }
}

TEST_CASE("aquakv chunk: layers come one after another, sub-chunks in any order", "[io][aquakv]") {
  const Rows4 x = of_layers(small, 70, 0.5f);
  const ModelMaps model(x);
  const auto maps = model.of(small);
  const Bytes bytes = aquakv_chunk(x, with(2), maps);
  const Decoded all = decode_all(bytes, maps);
  const auto chunk = AquakvReader::open(bytes, maps);
  REQUIRE(chunk);
  REQUIRE(chunk->head().sub_chunks() == 3);
  std::vector<float> keys(static_cast<std::size_t>(chunk->row_numbers(KvSide::keys))), values(static_cast<std::size_t>(chunk->row_numbers(KvSide::values)));
  std::vector<std::byte> room(chunk->advance_bytes());
  for (const index_t sub : {2, 0, 1})
    for (const index_t l : {0, 1, 2}) {
      const auto rows = chunk->rows(sub, keys.data(), values.data());
      REQUIRE(chunk->advance(l, sub, rows, Scratch(room)) == Status::ok);
      for (const KvSide side : {KvSide::keys, KvSide::values}) {
        const index_t n = chunk->head().tokens_of(sub), dim = x.dim(side);
        std::vector<float> out(static_cast<std::size_t>(2 * n * dim));
        REQUIRE(chunk->expand(l, side, sub, rows, dense_view(out.data(), index_t{2}, n, dim)) == Status::ok);
        const auto& want = side == KvSide::keys ? all.keys : all.values;
        for (index_t h = 0; h < 2; ++h)
          for (index_t i = 0; i < n * dim; ++i)
            REQUIRE(out[static_cast<std::size_t>(h * n * dim + i)] == want[static_cast<std::size_t>(((l * 2 + h) * 70 + sub * 32) * dim + i)]);
      }
    }
}

TEST_CASE("aquakv chunk: keys are turned back before they are coded, and forth when they are read", "[io][aquakv]") {
  const TurnedRows x(of_layers(small, 64, 0.02f), GENERATE(prim::RopePairing::half_split, prim::RopePairing::interleaved));
  const Rows4 &raw = x.raw, &rotated = x.rotated;
  ModelMaps model(raw);
  model.form = KeyForm::raw;
  const auto maps = model.of(small);
  const Aquakv m = with(3);
  const double size = square_distance(raw.keys, std::vector<float>(raw.keys.size()));
  const Bytes turned = aquakv_chunk(rotated, m, maps, &x.rope, false, x.place), kept = aquakv_chunk(raw, m, maps, nullptr, false, x.of_raw);
  const double right = square_distance(decode_all(turned, maps, &x.rope).keys, rotated.keys);
  REQUIRE(right < 1e-2 * size);
  REQUIRE(square_distance(decode_all(kept, maps).keys, raw.keys) == Approx(right).epsilon(0.05));
  // Rotated keys are not what the maps say.
  REQUIRE(square_distance(decode_all(aquakv_chunk(rotated, m, maps, nullptr, false, x.of_raw), maps).keys, rotated.keys) > 3 * right);
  // Exact tokens are never turned.
  REQUIRE(square_distance(decode_all(aquakv_chunk(rotated, m, maps, &x.rope, true, x.place), maps, &x.rope).keys, rotated.keys) < 1e-6 * size);

  // Maps of rotated keys say nothing of raw ones.
  model.form = KeyForm::rotated;
  require_rope_told<AquakvWriter, AquakvReader>(x, turned, m, maps, model.of(small));
}

TEST_CASE("aquakv chunk: NaN and infinities are repaired and counted", "[io][aquakv]") {
  const Rows4 x = of_layers(small, 40, 0.3f);
  const ModelMaps model(x);
  const auto maps = model.of(small);
  const bool exact = GENERATE(false, true);
  require_repaired(decode_all(repaired_chunk<AquakvWriter>(x, with(4), maps, exact), maps), exact, model.first[0][0]);
}

TEST_CASE("aquakv chunk: every field changes the bytes", "[io][aquakv]") {
  const CacheShape wide{.layers = 2, .q_heads = 4, .kv_heads = 4, .head_dim = 16};
  const Rows4 x(wide, 80);
  const ModelMaps model(x);
  const auto maps = model.of(wide);
  const Bytes base = aquakv_chunk(x, with(2), maps);
  const auto differs = [&](auto&& change) {
    Aquakv m = with(2);
    change(m);
    return aquakv_chunk(x, m, maps) != base;
  };
  REQUIRE(!differs([](Aquakv&) {}));
  REQUIRE(differs([](Aquakv& m) { m.key_bits = 3; }));
  REQUIRE(differs([](Aquakv& m) { m.value_bits = 3; }));
  REQUIRE(differs([](Aquakv& m) { m.first_bits = 3; }));
  REQUIRE(differs([](Aquakv& m) { m.sub_chunk = 31; }));
  REQUIRE(differs([](Aquakv& m) { m.coder = EntropyCoder::rans; }));
  Aquakv pieces = with(2);
  pieces.group = 16;
  for (const auto& [method, count] : {std::pair{with(2), 1}, {pieces, 4}}) {
    const Bytes bytes = aquakv_chunk(x, method, maps);
    io::AquakvPart part;
    REQUIRE(AquakvReader::open(bytes, maps)->read_part(1, KvSide::values, part) == Status::ok);
    REQUIRE(part.pieces == count);
    REQUIRE(part.lengths.size() == static_cast<std::size_t>(80 * count * 2));
  }
}

TEST_CASE("aquakv chunk: other maps are refused", "[io][aquakv]") {
  const Rows4 x = of_layers(small, 40, 0.3f);
  const ModelMaps model(x), others(of_layers(small, 40, 0.3f, 5));
  const auto maps = model.of(small);
  const bool exact = GENERATE(false, true);
  const Bytes bytes = aquakv_chunk(x, with(2), maps, nullptr, exact);
  REQUIRE(AquakvReader::open(bytes, others.of(small)).status() == Status::incompatible);
  for (const int what : {0, 1, 2, 3}) {
    ModelMaps changed = model;
    float& one = (what < 2 ? changed.first[what] : changed.maps[what - 2]).back();
    one = one * (1.0f - 0x1p-20f) + 1e-30f;
    REQUIRE(AquakvReader::open(bytes, changed.of(small)).status() == Status::incompatible);
  }
  CacheShape deep = small;
  deep.layers = 4;
  const ModelMaps four(Rows4(deep, 40));
  REQUIRE(AquakvReader::open(bytes, four.of(deep)).status() == Status::incompatible);
  REQUIRE(AquakvWriter::make(with(2), deep, maps).status() == Status::shape_mismatch);

  const auto made = [&](auto&& change) {
    LayerMaps m = model.view();
    change(m);
    return AquakvMaps::make(m, small).status();
  };
  REQUIRE(made([](LayerMaps&) {}) == Status::ok);
  REQUIRE(made([](LayerMaps& m) { m.first_values = nullptr; }) == Status::missing_input);
  REQUIRE(made([](LayerMaps& m) { m.keys = nullptr; }) == Status::missing_input);
  REQUIRE(made([](LayerMaps& m) { m.layers = 2; }) == Status::shape_mismatch);
  REQUIRE(made([](LayerMaps& m) { m.value_channels = 16; }) == Status::shape_mismatch);
  ModelMaps nan = model;
  nan.maps[1].back() = std::nanf("");
  REQUIRE(AquakvMaps::make(nan.view(), small).status() == Status::invalid_argument);
  REQUIRE(AquakvMaps::make(model.view(), {.layers = 0}).status() == Status::invalid_argument);
  // A model of one layer has no maps behind the first.
  CacheShape flat = small;
  flat.layers = 1;
  LayerMaps one = model.view();
  one.layers = 1, one.keys = one.values = nullptr;
  REQUIRE(AquakvMaps::make(one, flat).status() == Status::ok);
}

namespace {

struct Tiny {
  CacheShape shape{.layers = 2, .q_heads = 1, .kv_heads = 1, .head_dim = 3};
  Rows4 x{shape, 12};
  ModelMaps model{Rows4(shape, 30, 4)};
  AquakvMaps maps = model.of(shape);
  Aquakv method{.first_bits = 2, .sub_chunk = 7};
};

}  // namespace

TEST_CASE("aquakv chunk: cut anywhere, or with any bit another one, it is refused", "[io][aquakv]") {
  Tiny tiny;
  tiny.method.coder = GENERATE(EntropyCoder::range, EntropyCoder::rans);
  require_damage_told<AquakvReader>(aquakv_chunk(tiny.x, tiny.method, tiny.maps, nullptr, GENERATE(false, true)), tiny.maps);
}

TEST_CASE("aquakv chunk: forged bytes with right checksums never lead outside", "[io][aquakv]") {
  Tiny tiny;
  tiny.method.coder = GENERATE(EntropyCoder::range, EntropyCoder::rans);
  tiny.method.key_bits = GENERATE(2, 4);
  const bool exact = GENERATE(false, true);
  const Bytes good = aquakv_chunk(tiny.x, tiny.method, tiny.maps, nullptr, exact);
  std::size_t accepted = 0, refused = 0;
  for (std::size_t i = 0; i < good.size(); ++i)
    for (const int value : {0x00, 0x01, 0x02, 0x7c, 0x7f, 0x80, 0xfe, 0xff}) {
      Bytes forged = good;
      forged[i] = static_cast<std::byte>(value);
      sign(forged);
      const auto chunk = AquakvReader::open(forged, tiny.maps);
      if (!chunk) {
        ++refused;
        continue;
      }
      const io::AquakvHead& h = chunk->head();
      std::vector<float> room(static_cast<std::size_t>(std::min<index_t>(h.sub_chunk, h.tokens) * h.kv_heads * 256));
      Workspace work;
      REQUIRE(chunk->scratch_bytes() < 1u << 17);
      REQUIRE(work.reserve(chunk->scratch_bytes()) == Status::ok);
      for (const KvSide side : {KvSide::keys, KvSide::values})
        for (index_t l = 0; l < h.layers; ++l)
          for (index_t sub = 0; sub < std::min<index_t>(h.sub_chunks(), 50); ++sub) {
            const auto out = dense_view(room.data(), index_t{h.kv_heads}, h.tokens_of(sub), h.dim(side));
            const Status s = chunk->decode(l, side, sub, out, Scratch(work.bytes()));
            REQUIRE((s == Status::ok || s == Status::corrupt_data));
            (s == Status::ok ? accepted : refused) += 1;
            if (s == Status::ok)
              for (index_t k = 0; k < out.size(); ++k) REQUIRE(std::isfinite(room[static_cast<std::size_t>(k)]));
          }
    }
  REQUIRE(accepted > 100);
  REQUIRE(refused > 100);
}

TEST_CASE("aquakv chunk: few bytes do not claim many tokens", "[io][aquakv]") {
  const Tiny tiny;
  Bytes bytes = aquakv_chunk(tiny.x, tiny.method, tiny.maps);
  const std::uint32_t many = 0x7ffffff;
  const std::uint64_t total = many;
  std::memcpy(bytes.data() + 32, &many, 4), std::memcpy(bytes.data() + 56, &total, 8);
  sign(bytes);
  const auto chunk = AquakvReader::open(bytes, tiny.maps);
  REQUIRE(chunk);
  REQUIRE(chunk->head().tokens == many);
  REQUIRE(chunk->scratch_bytes() < 1u << 12);
  io::AquakvPart part;
  REQUIRE(chunk->read_part(0, KvSide::keys, part) == Status::corrupt_data);
}

TEST_CASE("aquakv chunk: parts may not change places", "[io][aquakv]") {
  const Tiny tiny;
  const Bytes good = aquakv_chunk(tiny.x, tiny.method, tiny.maps, nullptr, true);
  const auto part = static_cast<std::ptrdiff_t>((good.size() - 88) / 4);  // all are as long
  Bytes swapped = good;
  std::swap_ranges(swapped.begin() + 88, swapped.begin() + 88 + part, swapped.begin() + 88 + 2 * part);
  const auto chunk = AquakvReader::open(swapped, tiny.maps);
  REQUIRE(chunk);
  REQUIRE(chunk->check(0, KvSide::keys) == Status::corrupt_data);
  REQUIRE(chunk->check(1, KvSide::keys) == Status::corrupt_data);
  REQUIRE(chunk->check(0, KvSide::values) == Status::ok);
}

TEST_CASE("aquakv chunk: wrong calls are refused", "[io][aquakv]") {
  const Rows4 x = of_layers(small, 40, 0.3f);
  const ModelMaps model(x);
  const auto maps = model.of(small);
  const Bytes bytes = aquakv_chunk(x, with(2), maps);
  const auto chunk = AquakvReader::open(bytes, maps);
  std::vector<float> room(8192);
  Workspace work;
  REQUIRE(work.reserve(chunk->scratch_bytes()) == Status::ok);
  const auto decode = [&](index_t l, KvSide side, index_t sub, index_t heads, index_t n, index_t dim) {
    return chunk->decode(l, side, sub, dense_view(room.data(), heads, n, dim), Scratch(work.bytes()));
  };
  REQUIRE(decode(0, KvSide::keys, 0, 2, 32, 8) == Status::ok);
  REQUIRE(decode(-1, KvSide::keys, 0, 2, 32, 8) == Status::out_of_range);
  REQUIRE(decode(3, KvSide::keys, 0, 2, 32, 8) == Status::out_of_range);
  REQUIRE(decode(0, KvSide::keys, 2, 2, 32, 8) == Status::out_of_range);
  REQUIRE(decode(0, KvSide::values, 0, 2, 32, 8) == Status::shape_mismatch);
  REQUIRE(decode(0, KvSide::keys, 1, 2, 32, 8) == Status::shape_mismatch);
  REQUIRE(chunk->decode(0, KvSide::keys, 0, dense_view(room.data(), 2, 32, 8), {}) == Status::workspace_too_small);
  const TensorView<float, 3> apart{room.data(), {2, 32, 8}, {1024, 16, 2}};
  REQUIRE(chunk->decode(0, KvSide::keys, 0, apart, Scratch(work.bytes())) == Status::shape_mismatch);
  std::vector<float> keys(32 * 16), values(32 * 32);
  const auto rows = chunk->rows(1, keys.data(), values.data());
  REQUIRE(chunk->advance(0, 1, rows, Scratch(work.bytes())) == Status::ok);
  REQUIRE(chunk->advance(0, 0, rows, Scratch(work.bytes())) == Status::shape_mismatch);
  REQUIRE(chunk->advance(0, 2, rows, Scratch(work.bytes())) == Status::out_of_range);
  REQUIRE(chunk->advance(3, 1, rows, Scratch(work.bytes())) == Status::out_of_range);
  REQUIRE(chunk->advance(0, 1, rows, {}) == Status::workspace_too_small);
  REQUIRE(chunk->advance(-1, 1, rows, Scratch(work.bytes())) == Status::out_of_range);
  REQUIRE(chunk->advance(0, -1, rows, Scratch(work.bytes())) == Status::out_of_range);
  REQUIRE(decode(0, KvSide::keys, -1, 2, 32, 8) == Status::out_of_range);
  auto narrow = rows, gaps = rows;
  narrow.keys.extent[1] = 15, gaps.values.stride[1] = 2;
  REQUIRE(chunk->advance(0, 1, narrow, Scratch(work.bytes())) == Status::shape_mismatch);
  REQUIRE(chunk->advance(0, 1, gaps, Scratch(work.bytes())) == Status::shape_mismatch);
  const auto expand = [&](index_t l, index_t sub, index_t heads, const auto& from) {
    return chunk->expand(l, KvSide::keys, sub, from, dense_view(room.data(), heads, 8, 8));
  };
  REQUIRE(expand(0, 1, 2, rows) == Status::ok);
  REQUIRE(expand(-1, 1, 2, rows) == Status::out_of_range);
  REQUIRE(expand(3, 1, 2, rows) == Status::out_of_range);
  REQUIRE(expand(0, -1, 2, rows) == Status::out_of_range);
  REQUIRE(expand(0, 2, 2, rows) == Status::out_of_range);
  REQUIRE(expand(0, 1, 1, rows) == Status::shape_mismatch);
  REQUIRE(expand(0, 1, 2, narrow) == Status::shape_mismatch);
  auto shorter = rows;
  shorter.keys.extent[0] = 7;
  REQUIRE(expand(0, 1, 2, shorter) == Status::shape_mismatch);
  Aquakv bad = with(2);
  bad.sub_chunk = 0;
  REQUIRE(AquakvWriter::make(bad, small, maps).status() == Status::invalid_argument);
  REQUIRE(AquakvWriter::make({}, {.layers = 0}, maps).status() == Status::invalid_argument);
  auto writer = AquakvWriter::make({}, small, maps);
  const auto none = [](index_t, index_t, auto, auto) { return Status::ok; };
  ByteList sink;
  constexpr index_t far = std::numeric_limits<index_t>::max();  // twice that is negative
  for (const io::StreamPlace& p : {io::StreamPlace{.tokens = -1}, {.tokens = 2, .total = 1}, {.tokens = 1, .first = 1, .total = 1},
                                   {.tokens = 1, .total = 1, .position = -1}, {.tokens = 1, .total = 1, .position = 0x7fffffff},
                                   {.tokens = far, .first = far, .position = far}, {.tokens = far}, {.first = far}})
    REQUIRE(writer->write(sink, p, false, none) == Status::invalid_argument);
  REQUIRE(sink.bytes.empty());
  REQUIRE(writer->write(sink, {.tokens = 1, .total = 1}, false,
                        [](index_t l, index_t, auto, auto) { return l == 1 ? Status::io_error : Status::ok; }) == Status::io_error);
}

TEST_CASE("aquakv chunk: sinks that stop and memory that is refused", "[io][aquakv][faults]") {
  const Rows4 x = of_layers(small, 40, 0.3f);
  const ModelMaps model(x);
  const auto maps = model.of(small);
  require_faults_told<AquakvWriter>(x, with(2), maps, GENERATE(false, true));
}
