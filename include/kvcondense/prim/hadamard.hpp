#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim {

/// Orthonormal Walsh-Hadamard transform of blocks of channels: one large channel becomes a little of every
/// channel, and lengths and products stay.
///
/// Source   Sylvester's construction; for caches QuaRot, arXiv:2404.00456.
/// Shapes   rows of dim numbers in blocks of `block`, a power of two that divides dim; 0: the largest one. With
///          `overlap` two blocks of the largest power of two that fits, one at each end, one after the other: where a head
///          is no power of two, all channels mix still.
/// Cost     dim * log2(block) additions a row, twice that for blocks that overlap.
/// Numbers  float32; the factor 1 / sqrt(block) comes first, so that nothing outgrows the row's length.
///          `seed` draws a sign for every channel before the transform (0: none): against rows that lie along its
///          axes. A block of one channel without signs changes nothing.
struct Hadamard {
  index_t block = 0;
  std::uint64_t seed = 0;
  bool overlap = false;

  constexpr index_t size(index_t dim) const {
    if (overlap) return static_cast<index_t>(std::bit_floor(static_cast<std::uint64_t>(dim)));
    return block == 0 ? dim & -dim : block;
  }
  constexpr bool identity() const { return block == 1 && seed == 0 && !overlap; }
  constexpr index_t stored_dim(index_t dim) const { return dim; }
  constexpr bool valid(index_t dim) const {
    if (dim < 1 || dim > max_head_dim) return false;
    return overlap ? block == 0 : block >= 0 && (block & (block - 1)) == 0 && dim % size(dim) == 0;
  }
  constexpr std::int64_t fingerprint() const {
    return static_cast<std::int64_t>((seed + 1) * 1024 + static_cast<std::uint64_t>(overlap ? 1023 : block));
  }
};

static_assert(TransformDescription<Hadamard>);

/// The transform of every block of n numbers on the host, orthonormal: its own inverse.
inline void hadamard_mix(index_t block, float* x, index_t n) {
  const float factor = 1.0f / std::sqrt(static_cast<float>(block));
  for (index_t i = 0; i < n; ++i) x[i] *= factor;
  for (index_t half = 1; half < block; half *= 2)
    for (index_t i = 0; i < n; i += 2 * half)
      for (index_t j = i; j < i + half; ++j) {
        const float a = x[j], b = x[j + half];
        x[j] = a + b, x[j + half] = a - b;
      }
}

}  // namespace kvcondense::prim
