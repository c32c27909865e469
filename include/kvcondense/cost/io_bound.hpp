#pragma once

#include <cmath>

#include <kvcondense/core/policy.hpp>
#include <kvcondense/cost/model.hpp>

namespace kvcondense::cost {

/// Tells how many numbers any exact attention must move between memory and chip.
///
/// Idea     attention of a prompt cannot move less than N^2 d^2 / M numbers through a fast memory of M numbers
///          (less than N^2 d / sqrt(M) where M < d^2), whatever its blocks; a decode step must read the cache.
///          Only approximation gets below.
/// Source   Saha and Ye, The I/O Complexity of Attention, arXiv:2402.07443.
/// Needs    tokens, head size, numbers that fit on the chip.
/// Shapes   scalars, one head.
/// Cost     a few operations.
/// Numbers  double, up to a constant factor. Both formulas meet at M = d^2. Never below the trivial N d.
/// Errors   validate: invalid_argument unless all are positive.
struct IoBound {
  static constexpr Descriptor about{"io_bound", Stage::cost, "arXiv:2402.07443"};

  double tokens = 0;
  double head_dim = 0;
  double on_chip = 0;  ///< numbers, not bytes

  bool large() const { return on_chip >= head_dim * head_dim; }
  double large_memory() const { return tokens * tokens * head_dim * head_dim / on_chip; }
  double small_memory() const { return tokens * tokens * head_dim / std::sqrt(on_chip); }
  double numbers() const { return std::fmax(large() ? large_memory() : small_memory(), tokens * head_dim); }

  Status validate() const {
    const auto sane = [](double x) { return x >= 1.0 && x < 1e15; };
    return sane(tokens) && sane(head_dim) && sane(on_chip) ? Status::ok : Status::invalid_argument;
  }
};

/// Bytes of one layer that one exact decode step reads.
inline double decode_bytes_least(double slots, index_t kv_heads, index_t head_dim, double bytes_per_number = 2.0) {
  return 2.0 * slots * static_cast<double>(kv_heads * head_dim) * bytes_per_number;
}

}  // namespace kvcondense::cost
