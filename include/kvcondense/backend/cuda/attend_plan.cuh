#pragma once

#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/attend.hpp>

// How a call of attention is cut into blocks, from lengths that only the device knows. A piece depends on nothing
// but its own head's length: results are the same on every device, beside any other heads.

namespace kvcondense::prim::cuda_kernels {

inline constexpr index_t row_block = 8;         ///< query rows (tokens x group) of one block
inline constexpr index_t least_piece = 256;     ///< slots of a piece, doubled until ...
inline constexpr index_t most_pieces = 64;      ///< ... a head has at most so many
inline constexpr index_t split_rows = 64;       ///< calls with more rows fill the device without splitting heads

/// Slots of a head's pieces. Whole heads where rows are many.
KVCONDENSE_HD constexpr index_t piece_slots(index_t slots, bool split) {
  if (!split) return slots > 0 ? slots : 1;
  index_t size = least_piece;
  while (slots > most_pieces * size) size *= 2;
  return size;
}
KVCONDENSE_HD constexpr index_t pieces(index_t slots, bool split) {
  const index_t size = piece_slots(slots, split);
  return slots <= size ? 1 : (slots + size - 1) / size;
}

/// Blocks of a launch over pieces: blocks of rows, pieces, heads. Only x may be beyond 65535, and rows may be many.
constexpr cuda::Grid piece_grid(index_t rows, index_t most, index_t kv_heads) { return {cuda::covering(rows, row_block), most, kv_heads}; }

/// The numbers of a call, as kernels get them. Arrays of the workspace:
///   sums   [head][piece][row][value_dim]   of values, weighted by exp(logit - top)
///   top    [head][piece][row]              largest logit of the piece; -inf where no slot is seen
///   total  [head][piece][row]              sum of the weights
///   final_top, final_scale [head][row]     exp(logit - final_top) * final_scale is a probability
///   logits [head][mass row][max_slots]
struct AttendPlan {
  AttendRequest request{};
  index_t kv_heads = 0, group = 0, tokens = 0, rows = 0, dim = 0, value_dim = 0;
  index_t max_slots = 0;
  index_t most = 1;           ///< pieces that any head may have
  index_t first_mass_row = 0; ///< rows from here on count for mass
  bool split = false;
  float *sums = nullptr, *top = nullptr, *total = nullptr, *final_top = nullptr, *final_scale = nullptr, *logits = nullptr;

  index_t mass_rows() const { return request.mass.data == nullptr ? 0 : rows - first_mass_row; }

  /// Slots that a row sees.
  KVCONDENSE_HD index_t visible(index_t slots, index_t row) const {
    const index_t n = slots - tokens + row / group + 1;
    return n < 0 ? 0 : n;
  }
  KVCONDENSE_HD index_t at_piece(index_t head, index_t piece, index_t row) const { return (head * most + piece) * rows + row; }
  KVCONDENSE_HD float* logit_row(index_t head, index_t row) const {
    return logits + (head * (rows - first_mass_row) + row - first_mass_row) * max_slots;
  }
};

inline AttendPlan plan_of(const AttendRequest& request, index_t kv_heads, index_t max_slots) {
  AttendPlan p;
  p.request = request;
  p.kv_heads = kv_heads;
  p.group = request.queries.extent[0] / kv_heads;
  p.tokens = request.queries.extent[1];
  p.rows = p.group * p.tokens;
  p.dim = request.queries.extent[2];
  p.value_dim = request.out.extent[2];
  p.max_slots = max_slots;
  p.split = p.rows <= split_rows;
  const index_t least = (max_slots + least_piece - 1) / least_piece;
  p.most = !p.split || least < 1 ? 1 : least < most_pieces ? least : most_pieces;
  const index_t counted = request.mass_rows < p.tokens ? request.mass_rows : p.tokens;
  p.first_mass_row = (p.tokens - counted) * p.group;
  return p;
}

inline std::size_t workspace_of(const AttendPlan& p) {
  const index_t parts = p.kv_heads * p.most * p.rows;
  return Scratch::align + Scratch::bytes_for<float>(parts * p.value_dim) + 2 * Scratch::bytes_for<float>(parts) +
         2 * Scratch::bytes_for<float>(p.kv_heads * p.rows) +
         Scratch::bytes_for<float>(p.kv_heads * p.mass_rows() * p.max_slots);
}

inline bool place(AttendPlan& p, Scratch scratch) {
  const index_t parts = p.kv_heads * p.most * p.rows;
  p.sums = scratch.take<float>(parts * p.value_dim);
  p.top = scratch.take<float>(parts);
  p.total = scratch.take<float>(parts);
  p.final_top = scratch.take<float>(p.kv_heads * p.rows);
  p.final_scale = scratch.take<float>(p.kv_heads * p.rows);
  p.logits = scratch.take<float>(p.kv_heads * p.mass_rows() * p.max_slots);
  return p.logits != nullptr;
}

}  // namespace kvcondense::prim::cuda_kernels
