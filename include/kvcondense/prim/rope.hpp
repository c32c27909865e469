#pragma once

#include <cmath>
#include <utility>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::prim {

/// Turns one row by angles given as cos and sin per pair; `back` turns the other way. `in` and `out`
/// may be the same row. Components beyond the pairs are not touched.
KVCONDENSE_HD inline void rotate_row(const float* in, float* out, const float* cos, const float* sin, index_t pairs,
                                     RopePairing pairing, bool back = false) {
  const index_t far = pairing == RopePairing::half_split ? pairs : 1;
  const index_t step = pairing == RopePairing::half_split ? 1 : 2;
  for (index_t t = 0; t < pairs; ++t) {
    const float s = back ? -sin[t] : sin[t];
    const float x = in[t * step], y = in[t * step + far];
    out[t * step] = x * cos[t] - y * s;
    out[t * step + far] = y * cos[t] + x * s;
  }
}

/// cos and sin of position * frequency for every pair: the angle in double, the results in float.
inline void rope_cos_sin(const RopeAngles& angles, index_t position, float* cos, float* sin) {
  for (index_t t = 0; t < angles.pairs; ++t) {
    const double angle = static_cast<double>(position) * static_cast<double>(angles.frequency[t]);
    cos[t] = static_cast<float>(std::cos(angle));
    sin[t] = static_cast<float>(std::sin(angle));
  }
}

/// How rows turn.
struct RopeTurn {
  bool back = false;   ///< by minus the position: removes a rotation
  float scale = 1.0f;  ///< of the rotated components; an engine's first rotation has its attention factor
};

/// out[h, t, :] = rotation(position of t) * rows[h, t, :].
///
///   rotate(ctx, angles, rows, positions, out, RopeTurn) -> Status
///   shift(ctx, angles, rows, index_t by, out, RopeTurn) -> Status     the same position for all rows; without pairs a copy
///
/// Source    Su et al., RoFormer, arXiv:2104.09864, equation 34.
/// Shapes    rows and out [heads, tokens, dim], last dimension contiguous; positions [heads, tokens], or
///           [1, tokens] for all heads, where the backend's words read; `by` is the host's. `out` may be `rows`. Positions may be negative.
/// Cost      one read and one write; cos and sin once per position and head row of `positions`.
/// Numbers   angles in double, cos and sin in float, products in float.
/// Errors    shape_mismatch when views disagree or rows are shorter than the rotary part.
template <Backend B>
struct Rope {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

/// cos and sin for the positions of slots: sixteen small angles and one large one per sixteen slots, so
/// that attention over raw keys turns keys by the small ones and queries by the large ones.
///
/// Reads are const and may come from many threads; `reserve` may not run beside them.
class RopeTable {
 public:
  static constexpr index_t tile = 16;

  RopeTable() = default;

  static Expected<RopeTable> make(const RopeConfig& config, index_t dim, MemoryResource<Cpu>& memory) {
    const Expected<RopeAngles> angles = rope_angles(config, dim);
    if (!angles) return angles.status();
    RopeTable table;
    table.angles_ = *angles;
    table.fine_ = Buffer<float>(memory);
    table.coarse_ = Buffer<float>(memory);
    if (const Status s = table.extend(table.fine_, tile, 1); s != Status::ok) return s;
    return Expected<RopeTable>(std::move(table));
  }

  /// Entries for slots [0, slots). Never shrinks; on refusal nothing changes.
  Status reserve(index_t slots) { return extend(coarse_, (slots + tile - 1) / tile, tile); }

  Status fork(RopeTable& copy) const {
    if (const Status s = copy.fine_.copy_from(fine_); s != Status::ok) return s;
    if (const Status s = copy.coarse_.copy_from(coarse_); s != Status::ok) return s;
    copy.angles_ = angles_;
    return Status::ok;
  }

  const RopeAngles& angles() const { return angles_; }
  index_t pairs() const { return angles_.pairs; }
  index_t slots() const { return coarse_.empty() ? 0 : coarse_.size() / entry() * tile; }
  std::size_t bytes() const { return fine_.bytes() + coarse_.bytes(); }

  /// cos per pair, then sin per pair: of position b in [0, tile), of position a * tile. Entries lie `entry()` apart.
  const float* fine(index_t b) const { return fine_.data() + b * entry(); }
  const float* coarse(index_t a) const { return coarse_.data() + a * entry(); }
  index_t entry() const { return 2 * pairs(); }

  /// Turns a row by any whole number of positions.
  void rotate(float* row, index_t positions) const {
    const bool back = positions < 0;
    const index_t p = back ? -positions : positions;
    if (p < slots()) {
      if (p >= tile) turn(row, coarse(p / tile), back);
      if (p % tile != 0) turn(row, fine(p % tile), back);
      return;
    }
    float cos_sin[max_head_dim];
    rope_cos_sin(angles_, p, cos_sin, cos_sin + pairs());
    turn(row, cos_sin, back);
  }

  /// What the softmax scale must be multiplied by when rotations here replace the engine's: queries and
  /// keys that the engine rotated carry its attention factor already.
  float logit_scale(bool rotated_input) const {
    return rotated_input ? 1.0f : angles_.attention_factor * angles_.attention_factor;
  }

 private:
  void turn(float* row, const float* cos_sin, bool back) const {
    rotate_row(row, row, cos_sin, cos_sin + pairs(), pairs(), angles_.pairing, back);
  }

  Status extend(Buffer<float>& table, index_t entries, index_t step) {
    const index_t have = table.size() / entry();
    if (entries <= have) return Status::ok;
    if (const Status s = table.resize(entries * entry()); s != Status::ok) return s;
    for (index_t a = have; a < entries; ++a) {
      float* at = table.data() + a * entry();
      rope_cos_sin(angles_, a * step, at, at + pairs());
    }
    return Status::ok;
  }

  RopeAngles angles_{};
  Buffer<float> fine_;
  Buffer<float> coarse_;
};

}  // namespace kvcondense::prim
