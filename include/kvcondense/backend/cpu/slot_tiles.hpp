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

}  // namespace kvcondense::prim::cpu
