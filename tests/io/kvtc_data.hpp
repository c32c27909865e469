#pragma once

#include <io/cachegen_data.hpp>
#include <kvcondense/io/kvtc.hpp>
#include <kvcondense/lowrank/fit/principal.hpp>

namespace kvcondense::test {

namespace fit = lowrank::fit;

/// A token's numbers of all layers and heads as one row.
inline fit::Matrix joint_rows(const Rows4& x, io::KvSide side) {
  const index_t channels = x.shape.kv_heads * x.dim(side), dim = x.dim(side);
  fit::Matrix m(x.tokens, x.shape.layers * channels);
  for (index_t l = 0; l < x.shape.layers; ++l)
    for (index_t c = 0; c < channels; ++c)
      for (index_t t = 0; t < x.tokens; ++t) m(t, l * channels + c) = static_cast<double>(x.rows(side, l)(c / dim, t, c % dim));
  return m;
}

/// Bases of made-up text, with their arrays.
struct JointBases {
  std::vector<float> encode[2], mean[2], energy[2];
  index_t dim[2] = {}, columns[2] = {};
  KeyForm form = KeyForm::rotated;

  JointBases(const fit::Matrix& keys, const fit::Matrix& values, index_t most = 4096) {
    int s = 0;
    for (const fit::Matrix* rows : {&keys, &values}) {
      const auto d = fit::principal_of_rows(*rows, true, most);
      REQUIRE(d);
      dim[s] = d->columns.rows(), columns[s] = d->columns.cols();
      for (index_t i = 0; i < dim[s]; ++i)
        for (index_t j = 0; j < columns[s]; ++j) encode[s].push_back(static_cast<float>(d->columns(i, j)));
      for (index_t j = 0; j < columns[s]; ++j) energy[s].push_back(static_cast<float>(d->energy(j)));
      for (index_t i = 0; i < dim[s]; ++i) mean[s].push_back(static_cast<float>(rows->col(i).mean()));
      ++s;
    }
  }
  explicit JointBases(const Rows4& x, index_t most = 4096)
      : JointBases(joint_rows(x, io::KvSide::keys), joint_rows(x, io::KvSide::values), most) {}

  HeadBases side(io::KvSide side) const {
    const auto s = static_cast<std::size_t>(side);
    return {encode[s].data(), nullptr, mean[s].data(), energy[s].data(), nullptr, 1, 1, dim[s], columns[s], form};
  }
  io::KvtcTransform transform(const CacheShape& shape) const {
    const auto t = io::KvtcTransform::make(side(io::KvSide::keys), side(io::KvSide::values), shape);
    REQUIRE(t.status() == Status::ok);
    return *t;
  }
};

inline Status write_kvtc(const Rows4& x, io::KvtcWriter& writer, ByteSink& sink, bool exact = false, io::StreamPlace place = {}) {
  place.tokens = x.tokens, place.total = std::max(place.total, place.first + x.tokens);
  return writer.write(sink, place, exact, [&](index_t layer, index_t first, auto k, auto v) {
    for (const io::KvSide side : {io::KvSide::keys, io::KvSide::values}) {
      auto& to = side == io::KvSide::keys ? k : v;
      const auto from = x.rows(side, layer, first, to.extent[1]);
      for (index_t h = 0; h < to.extent[0]; ++h)
        for (index_t t = 0; t < to.extent[1]; ++t)
          for (index_t d = 0; d < to.extent[2]; ++d) to(h, t, d) = from(h, t, d);
    }
    return Status::ok;
  });
}

inline Bytes kvtc_chunk(const Rows4& x, const quant::Kvtc& method, const io::KvtcTransform& transform,
                        const prim::RopeTable* rope = nullptr, bool exact = false, const io::StreamPlace& place = {}) {
  auto writer = io::KvtcWriter::make(method, x.shape, transform, rope);
  REQUIRE(writer.status() == Status::ok);
  VectorSink sink;
  REQUIRE(write_kvtc(x, *writer, sink, exact, place) == Status::ok);
  return sink.bytes;
}

/// Everything in a chunk, [layer][head][token][dim]; `s` says why not.
inline Decoded decode_all(const io::KvtcReader& chunk, Status& s) {
  const io::KvtcHead& h = chunk.head();
  Decoded d;
  s = Status::ok;
  for (const auto side : {io::KvSide::keys, io::KvSide::values}) {
    auto& x = side == io::KvSide::keys ? d.keys : d.values;
    const index_t dim = h.dim(side), per_layer = h.kv_heads * h.tokens * dim;
    x.resize(static_cast<std::size_t>(h.layers * per_layer));
    Workspace work;
    REQUIRE(work.reserve(chunk.scratch_bytes(side)) == Status::ok);
    for (index_t l = 0; l < h.layers; ++l)
      for (index_t sub = 0; sub < h.sub_chunks(); ++sub) {
        auto out = dense_view(x.data() + l * per_layer, h.kv_heads, h.tokens, dim);
        out.data += sub * h.sub_chunk * dim, out.extent[1] = h.tokens_of(sub);
        if (s == Status::ok) s = chunk.decode(l, side, sub, out, Scratch(work.bytes()));
      }
  }
  return d;
}
inline Decoded decode_all(const Bytes& bytes, const io::KvtcTransform& transform, const prim::RopeTable* rope = nullptr) {
  const auto chunk = io::KvtcReader::open(bytes, transform, rope);
  REQUIRE(chunk.status() == Status::ok);
  REQUIRE(chunk->bytes() == bytes.size());
  REQUIRE(chunk->check() == Status::ok);
  Status s = Status::ok;
  Decoded d = decode_all(*chunk, s);
  REQUIRE(s == Status::ok);
  return d;
}

}  // namespace kvcondense::test
