#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/io/stream_rows.hpp>

namespace kvcondense::io {

/// The principal components of a model's tokens, keys of all layers together and values of all layers together: what writer
/// and reader of a stream of KVTC share. Borrows the arrays.
///
/// Shapes   HeadBases of one layer and one group, whose `dim` is layers * kv_heads * head_dim: a token's numbers layer by layer,
///          within one head by head.
/// Cost     `make` reads every number once, for the id.
/// Errors   missing_input without a basis or energies of either side; shape_mismatch for bases of another model or of single
///          layers; invalid_argument for numbers that are none, energies that ascend or are negative.
class KvtcTransform {
 public:
  KvtcTransform() = default;

  static Expected<KvtcTransform> make(const HeadBases& keys, const HeadBases& values, const CacheShape& shape) {
    if (const Status s = kvcondense::validate(shape); s != Status::ok) return s;
    KvtcTransform t;
    t.keys_ = keys, t.values_ = values;
    Checksum id;
    for (const KvSide side : {KvSide::keys, KvSide::values}) {
      const HeadBases& b = t.side(side);
      const index_t dim = shape.layers * shape.kv_heads * (side == KvSide::keys ? shape.head_dim : shape.values());
      if (b.empty() || b.energy == nullptr) return Status::missing_input;
      if (b.layers != 1 || b.groups != 1 || b.dim != dim || b.columns < 1 || b.columns > dim || b.columns > 65535)
        return Status::shape_mismatch;
      if (!b.finite()) return Status::invalid_argument;
      index_t& used = side == KvSide::keys ? t.used_keys_ : t.used_values_;
      for (index_t i = 0; i < b.columns; ++i) {
        if (b.energy[i] < 0.0f || (i > 0 && b.energy[i] > b.energy[i - 1])) return Status::invalid_argument;
        // Directions that the calibration did not have are rounding: their deviation is no unit.
        if (b.energy[i] > 0x1p-100f && b.energy[i] > 1e-10f * b.energy[0]) used = i + 1;
      }
      const std::uint64_t sizes[] = {static_cast<std::uint64_t>(b.dim), static_cast<std::uint64_t>(b.columns),
                                     side == KvSide::keys && b.keys == KeyForm::raw};
      id.add(std::as_bytes(std::span(sizes)));
      const auto add = [&](const float* x, index_t n) {
        if (x != nullptr) id.add(std::as_bytes(std::span(x, static_cast<std::size_t>(n))));
      };
      add(b.encode, b.dim * b.columns), add(b.decode, b.dim * b.columns), add(b.mean, b.dim), add(b.energy, b.columns);
    }
    t.id_ = id.value();
    return t;
  }

  const HeadBases& side(KvSide s) const { return s == KvSide::keys ? keys_ : values_; }
  /// Components that hold anything: the others have no unit.
  index_t used(KvSide s) const { return s == KvSide::keys ? used_keys_ : used_values_; }
  /// Whether it is of keys before rotation.
  bool raw_keys() const { return keys_.keys == KeyForm::raw; }

  /// A number that differs when transforms do, or rotations where keys are turned.
  std::uint64_t id(const prim::RopeTable* rope = nullptr) const { return id_with_rotation(id_, rope); }

  /// z [tokens, components] += x [tokens, dim] times the first components, x being without the mean; rows of z without gaps.
  void project(KvSide s, TensorView<const float, 2> x, TensorView<float, 2> z) const {
    const HeadBases& b = side(s);
    for (index_t t0 = 0; t0 < x.extent[0]; t0 += tile)
      for (index_t d = 0; d < b.dim; ++d) {
        const float* row = b.encode + d * b.columns;
        for (index_t t = t0; t < std::min(t0 + tile, x.extent[0]); ++t) {
          const float v = x(t, d);
          float* to = &z(t, 0);
          for (index_t j = 0; j < z.extent[1]; ++j) to[j] += v * row[j];
        }
      }
  }
  /// out [heads, tokens, dim] = rows of a layer that components z [tokens, components] stand for, with the mean; rows of z
  /// without gaps.
  void expand(KvSide s, index_t layer, TensorView<const float, 2> z, TensorView<float, 3> out) const {
    const HeadBases& b = side(s);
    const float* decode = b.decoder(0, 0);
    const float* mean = b.mean_of(0, 0);
    const index_t heads = out.extent[0], dim = out.extent[2], first = layer * heads * dim;
    for (index_t t0 = 0; t0 < z.extent[0]; t0 += tile)
      for (index_t c = 0; c < heads * dim; ++c) {
        const float* row = decode + (first + c) * b.columns;
        const float start = mean == nullptr ? 0.0f : mean[first + c];
        for (index_t t = t0; t < std::min(t0 + tile, z.extent[0]); ++t)
          out(c / dim, t, c % dim) = start + (z.extent[1] > 0 ? dot(row, &z(t, 0), z.extent[1]) : 0.0f);
      }
  }

 private:
  static constexpr index_t tile = 16;

  /// Eight sums side by side, so that compilers may use lanes.
  static float dot(const float* a, const float* b, index_t n) {
    float sum[8] = {};
    index_t i = 0;
    for (; i + 8 <= n; i += 8)
      for (index_t k = 0; k < 8; ++k) sum[k] += a[i + k] * b[i + k];
    for (index_t k = 0; i < n; ++i, ++k) sum[k] += a[i] * b[i];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
  }

  HeadBases keys_, values_;
  index_t used_keys_ = 0, used_values_ = 0;
  std::uint64_t id_ = 0;
};

}  // namespace kvcondense::io
