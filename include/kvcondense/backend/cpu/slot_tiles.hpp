#pragma once

#include <algorithm>
#include <cstring>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>

// What methods that look at all rows of a head have in common.

namespace kvcondense::prim::cpu {

inline constexpr index_t most_tile_rows = 64;
inline constexpr index_t most_tile_numbers = 32 * max_head_dim;  ///< which stay in the nearest cache

/// Calls use(slot of the first row, rows, how many) for the slots [first, last) of a head in order, tile by tile; those for which
/// wanted(first, how many) is false are not read.
template <class Use, class Wanted>
void for_slot_tiles(const SlotRows<Cpu>& rows, index_t head, index_t first, index_t last, Use&& use, Wanted&& wanted) {
  alignas(64) float tile[most_tile_numbers];
  const index_t dim = rows.dim(), most = std::min(most_tile_rows, most_tile_numbers / dim);
  for (index_t at = first; at < last; at += most) {
    const index_t n = std::min(most, last - at);
    if (!wanted(at, n)) continue;
    rows.read(head, at, {tile, n, dim});
    use(at, static_cast<const float*>(tile), n);
  }
}

template <class Use>
void for_slot_tiles(const SlotRows<Cpu>& rows, index_t head, index_t first, index_t last, Use&& use) {
  for_slot_tiles(rows, head, first, last, use, [](index_t, index_t) { return true; });
}

/// Some rows of a tile, each with a weight.
struct WeightedRows {
  index_t count = 0;
  const float* row[most_tile_rows];
  double weight[most_tile_rows];

  void take(const float* x, double w) { row[count] = x, weight[count++] = w; }
};

/// sum[d] += weight * row[d], row after row: every sum has one order, however rows come in tiles.
inline void add_weighted(const WeightedRows& rows, index_t dim, double* sum) {
  using Floats __attribute__((vector_size(32))) = float;
  using Doubles __attribute__((vector_size(64))) = double;
  constexpr index_t width = 8, together = 4;  // vectors of sums, so that one need not wait for itself
  index_t d = 0;
  for (; d + together * width <= dim; d += together * width) {
    Doubles s[together];
    std::memcpy(s, sum + d, sizeof s);
    for (index_t i = 0; i < rows.count; ++i) {
      Floats x[together];
      std::memcpy(x, rows.row[i] + d, sizeof x);
      const double w = rows.weight[i];
      const Doubles weight{w, w, w, w, w, w, w, w};
      for (index_t k = 0; k < together; ++k) s[k] += weight * __builtin_convertvector(x[k], Doubles);
    }
    std::memcpy(sum + d, s, sizeof s);
  }
  for (; d < dim; ++d)
    for (index_t i = 0; i < rows.count; ++i) sum[d] += rows.weight[i] * static_cast<double>(rows.row[i][d]);
}

/// out[i] = |centre - row i|^2 of `count` rows of `dim` numbers, one behind the other. Sixteen sums of every sixteenth number, which
/// then are halved until one is left: an order that all compilers and targets keep, and that vectors have room for.
inline void square_distances(const float* centre, const float* rows, index_t count, index_t dim, float* out) {
  using Sixteen __attribute__((vector_size(64))) = float;
  using Eight __attribute__((vector_size(32))) = float;
  using Four __attribute__((vector_size(16))) = float;
  constexpr index_t width = 16, together = 4;  // rows, so that a sum need not wait for itself
  for (index_t i = 0; i < count; i += together) {
    const float* row[together];
    Sixteen sum[together] = {}, c, x;
    for (index_t k = 0; k < together; ++k) row[k] = rows + std::min(i + k, count - 1) * dim;
    index_t d = 0;
    for (; d + width <= dim; d += width) {
      std::memcpy(&c, centre + d, sizeof c);
      for (index_t k = 0; k < together; ++k) std::memcpy(&x, row[k] + d, sizeof x), sum[k] += (c - x) * (c - x);
    }
    if (d < dim) {
      const std::size_t bytes = static_cast<std::size_t>(dim - d) * sizeof(float);
      c = x = Sixteen{};
      std::memcpy(&c, centre + d, bytes);
      for (index_t k = 0; k < together; ++k) std::memcpy(&x, row[k] + d, bytes), sum[k] += (c - x) * (c - x);
    }
    Four part[together];
    for (index_t k = 0; k < together; ++k) {
      const Sixteen s = sum[k];
      const Eight half = __builtin_shufflevector(s, s, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(s, s, 8, 9, 10, 11, 12, 13, 14, 15);
      part[k] = __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
    }
    // Columns of these four are rows of theirs: of each row numbers 0 and 2, 1 and 3, then both sums.
    const Four ab = __builtin_shufflevector(part[0], part[1], 0, 4, 1, 5) + __builtin_shufflevector(part[0], part[1], 2, 6, 3, 7);
    const Four cd = __builtin_shufflevector(part[2], part[3], 0, 4, 1, 5) + __builtin_shufflevector(part[2], part[3], 2, 6, 3, 7);
    const Four total = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    std::memcpy(out + i, &total, static_cast<std::size_t>(std::min(together, count - i)) * sizeof(float));
  }
}

}  // namespace kvcondense::prim::cpu
