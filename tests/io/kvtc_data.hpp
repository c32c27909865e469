#pragma once

#include <io/fitted_data.hpp>
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
  io::KvtcTransform of(const CacheShape& shape) const {
    const auto t = io::KvtcTransform::make(side(io::KvSide::keys), side(io::KvSide::values), shape);
    REQUIRE(t.status() == Status::ok);
    return *t;
  }
};

inline Bytes kvtc_chunk(const Rows4& x, const quant::Kvtc& method, const io::KvtcTransform& transform, const prim::RopeTable* rope = nullptr,
                        bool exact = false, const io::StreamPlace& place = {}) {
  return chunk_of<io::KvtcWriter>(x, method, transform, rope, exact, place);
}

inline Decoded decode_all(const io::KvtcReader& chunk, Status& s) {
  Workspace work;
  return decode_parts(chunk.head(), s, [&](index_t l, io::KvSide side, index_t sub, auto out) {
    REQUIRE(work.reserve(chunk.scratch_bytes(side)) == Status::ok);
    return chunk.decode(l, side, sub, out, Scratch(work.bytes()));
  });
}
inline Decoded decode_all(const Bytes& bytes, const io::KvtcTransform& transform, const prim::RopeTable* rope = nullptr) {
  return decode_whole(io::KvtcReader::open(bytes, transform, rope), bytes, [](const auto& c, Status& s) { return decode_all(c, s); });
}

}  // namespace kvcondense::test
