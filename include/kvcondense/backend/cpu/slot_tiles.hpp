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
  /// sum[d] += weight * row[d], row after row: every sum has one order, however rows come in tiles.
  void add_to(double* sum, index_t dim) const { number_ops().add_weighted(row, weight, count, dim, sum); }
};

}  // namespace kvcondense::prim::cpu
