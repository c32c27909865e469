#pragma once

#include <kvcondense/backend/cuda/piece_walk.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/attend.hpp>

// What a call of attention has, as kernels get it. How it is cut and shared out: piece_walk.cuh.

namespace kvcondense::prim::cuda_kernels {

/// The numbers of a call, as kernels get them. Arrays of the workspace:
///   sums   [head][piece][row][value_dim]   of values, weighted by exp(logit - top)
///   top    [head][piece][row]              largest logit of the piece; -inf where no slot is seen
///   total  [head][piece][row]              sum of the weights
///   final_top, final_scale [head][row]     exp(logit - final_top) * final_scale is a probability
///   logits [head][mass row][max_slots]
struct AttendPlan {
  AttendRequest request{};
  index_t kv_heads = 0, group = 0, rows = 0, dim = 0, value_dim = 0;
  index_t tokens = 0;         ///< from that of the first row to the newest
  index_t max_slots = 0;
  PieceRule cut{};
  index_t most = 1;           ///< pieces that any head may have
  index_t partials = 0;       ///< pieces times rows of a head, which memory is for
  index_t first_mass_row = 0; ///< rows from here on count for mass
  bool adds_mass = false;     ///< to what rows before these drew
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

/// Query rows of a KV head whose logits are kept at once where many count for mass: logits of a long prompt
/// against itself would grow with its square.
inline constexpr index_t mass_turn_rows = 256;

/// Tokens of a call that are attended to at once.
struct AttendTurn {
  AttendRequest request{};
  index_t first = 0;   ///< of the call's tokens
  index_t behind = 0;  ///< tokens of the call that come later
  bool adds_mass = false;
};

/// Calls f(turn) for the turns of a call, as long as it says ok: one for all tokens, or, where more rows than one turn has count for
/// mass, one for those that do not, and then some at a time. A mass is the same number in one turn and in many, for rows are
/// added in order.
template <class F>
Status by_turns(const AttendRequest& request, index_t kv_heads, F&& f) {
  const index_t tokens = request.queries.extent[1], group = request.queries.extent[0] / kv_heads;
  const index_t counted = request.mass.data == nullptr ? 0 : request.mass_rows < tokens ? request.mass_rows : tokens;
  const index_t at_once = group < mass_turn_rows ? mass_turn_rows / group : 1;
  if (counted <= at_once) return f(AttendTurn{request});
  for (index_t first = 0, end; first < tokens; first = end) {
    const bool counts = first >= tokens - counted;
    end = !counts ? tokens - counted : first + at_once < tokens ? first + at_once : tokens;
    AttendTurn turn{request, first, tokens - end, counts && first > tokens - counted};
    turn.request.queries = tokens_of(request.queries, first, end);
    turn.request.out = tokens_of(request.out, first, end);
    if (request.lse.data != nullptr) turn.request.lse = tokens_of(request.lse, first, end);
    if (!counts) turn.request.mass = {};
    if (const Status s = f(turn); s != Status::ok) return s;
  }
  return Status::ok;
}

inline AttendPlan plan_of(const AttendTurn& turn, index_t kv_heads, index_t max_slots) {
  const AttendRequest& request = turn.request;
  const index_t tokens = request.queries.extent[1];
  AttendPlan p;
  p.request = request;
  p.kv_heads = kv_heads;
  p.group = request.queries.extent[0] / kv_heads;
  p.tokens = tokens + turn.behind;
  p.rows = p.group * tokens;
  p.adds_mass = turn.adds_mass;
  p.dim = request.queries.extent[2];
  p.value_dim = request.out.extent[2];
  p.max_slots = max_slots;
  p.cut.row_blocks = cuda::covering(p.rows, row_block);
  p.most = p.cut.most(max_slots), p.partials = most_partials(max_slots, p.rows);
  const index_t counted = request.mass_rows < tokens ? request.mass_rows : tokens;
  p.first_mass_row = (tokens - counted) * p.group;
  return p;
}

inline std::size_t workspace_of(const AttendPlan& p) {
  const index_t parts = p.kv_heads * p.partials;
  return Scratch::align + Scratch::bytes_for<float>(parts * p.value_dim) + 2 * Scratch::bytes_for<float>(parts) +
         2 * Scratch::bytes_for<float>(p.kv_heads * p.rows) +
         Scratch::bytes_for<float>(p.kv_heads * p.mass_rows() * p.max_slots);
}

inline bool place(AttendPlan& p, Scratch scratch) {
  const index_t parts = p.kv_heads * p.partials;
  p.sums = scratch.take<float>(parts * p.value_dim);
  p.top = scratch.take<float>(parts);
  p.total = scratch.take<float>(parts);
  p.final_top = scratch.take<float>(p.kv_heads * p.rows);
  p.final_scale = scratch.take<float>(p.kv_heads * p.rows);
  p.logits = scratch.take<float>(p.kv_heads * p.mass_rows() * p.max_slots);
  return p.logits != nullptr;
}

}  // namespace kvcondense::prim::cuda_kernels
