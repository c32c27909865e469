#pragma once

#include <cstdint>
#include <cstring>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim {

/// Only some channels of a row, those with most energy in queries times energy in the rows that are coded first.
///
/// Source   ThinK, arXiv:2407.21018: |q_c|^2 |k_c|^2 is the squared Frobenius norm of what channel c adds to the scores.
/// Shapes   state: one bit per channel, 32 in a number. While rows are observed: the energy of every channel.
/// Cost     dim additions per observed row, 4 * dim per query row looked at, once.
/// Numbers  energies in float32, summed over the rows, over the query group and the newest `window` queries of the step in
///          which the first rows are coded. Ties keep the smaller channel; NaN and infinities count as nothing.
///          `pairs`: the two channels of a rotation (c and c + dim / 2, or 2c and 2c + 1 when `interleaved`) stay or go
///          together, by the sums of their energies, so that what is left may still be rotated.
struct ChannelList {
  std::int32_t kept = 0;    ///< channels that stay
  std::int32_t window = 0;  ///< newest queries that are looked at; 0: all of the step
  bool pairs = false;
  bool interleaved = false;

  static constexpr index_t words(index_t dim) { return (dim + 31) / 32; }
  constexpr index_t stored_dim(index_t) const { return kept; }
  constexpr bool needs_queries() const { return true; }
  constexpr index_t state_floats(index_t dim) const { return words(dim); }
  constexpr index_t finding_floats(index_t dim) const { return 2 * dim; }
  constexpr bool valid(index_t dim) const {
    const bool good = dim >= 1 && dim <= max_head_dim && kept >= 1 && kept <= dim && window >= 0;
    return good && (!pairs || (dim % 2 == 0 && kept % 2 == 0));
  }
  /// Of so many queries the first that is looked at.
  KVCONDENSE_HD constexpr index_t first_query(index_t rows) const { return window == 0 || rows <= window ? 0 : rows - window; }
  /// What a number adds to the energy of its channel.
  static KVCONDENSE_HD constexpr float energy(float x) {
    const float e = x * x;
    return e <= 3e38f ? e : 0.0f;
  }
  /// Whether a channel stays, by a state.
  static bool has(const float* state, index_t c) {
    std::uint32_t word;
    std::memcpy(&word, state + c / 32, sizeof word);
    return (word >> (c % 32) & 1u) != 0;
  }
  /// Whether numbers can be a state: as many channels as there should be, and none beyond the row.
  bool good_state(index_t dim, const float* state) const {
    index_t count = 0;
    for (index_t c = 0; c < words(dim) * 32; ++c) {
      if (has(state, c) && c >= dim) return false;
      count += has(state, c);
    }
    return count == kept;
  }
  constexpr std::int64_t fingerprint() const {
    return 0x7414c0000 + kept * 4 + (pairs ? 2 : 0) + (interleaved ? 1 : 0) + (std::int64_t{window} << 36);
  }
};

static_assert(TransformDescription<ChannelList>);

}  // namespace kvcondense::prim
