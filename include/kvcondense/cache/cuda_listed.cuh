#pragma once

#include <kvcondense/backend/cuda/chosen_slots.cuh>
#include <kvcondense/backend/cuda/listed_numbers.cuh>
#include <kvcondense/backend/cuda/turn_rows.cuh>
#include <kvcondense/cache/cuda_rotation.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/attend.hpp>
#include <kvcondense/prim/slot_runs.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

// What attention needs of a list of chosen slots beside the runs in which they lie.

namespace kvcondense::cache {

/// Numbers of listed slots, and queries that meet listed raw keys.
struct CudaListed {
  bool bias = false;         ///< slots have some, or a choice gives some to units
  bool value_scale = false;
  bool raw = false;          ///< keys are stored without rotation
  retrieve::Positions positions = retrieve::Positions::stored;
  index_t reach = 0;         ///< see QueryTurn
  bool passes = false;       ///< slots may live on in the one behind them

  /// `slots`: no row has more. Queries as they meet an index and as they meet slots.
  std::size_t bytes(const CacheShape& shape, index_t rows, index_t slots, index_t tokens) const {
    static_assert(sizeof(std::int32_t) == sizeof(float));
    return static_cast<std::size_t>(bias + value_scale + places()) * Scratch::bytes_for<float>(rows * slots) + (passes ? Scratch::bytes_for<std::uint8_t>(rows * slots) : 0) + static_cast<std::size_t>(reach > 0 ? 3 : 2) * turned_bytes(shape, tokens);
  }
  std::size_t turned_bytes(const CacheShape& shape, index_t tokens) const {
    return raw ? Scratch::bytes_for<float>(shape.q_heads * tokens * shape.head_dim) : 0;
  }
  bool take(index_t rows, index_t slots, Scratch& scratch, prim::ListedNumbers& out) const {
    out.room = slots;
    if (bias && (out.bias = scratch.take<float>(rows * slots)) == nullptr) return false;
    if (passes && (out.passed = scratch.take<std::uint8_t>(rows * slots)) == nullptr) return false;
    if (places() && (out.place = scratch.take<std::int32_t>(rows * slots)) == nullptr) return false;
    return !value_scale || (out.value_scale = scratch.take<float>(rows * slots)) != nullptr;
  }
  bool take(const CacheShape& shape, index_t tokens, Scratch& scratch, TensorView<float, 3>& turned, bool wanted = true) const {
    if (!raw || !wanted) return true;
    turned = dense_view(scratch.take<float>(shape.q_heads * tokens * shape.head_dim), shape.q_heads, tokens, shape.head_dim);
    return turned.data != nullptr;
  }

  /// Queries of a call become those that meet what an index knows of raw keys; by a transform which puts them far away, from there.
  template <class Query>
  static Status meet(Context<Cuda>& ctx, const Query& query, const QueryTurn& turn, const TensorView<float, 3>& out, TensorView<const float, 3>& queries) {
    if (!turn.turns()) return Status::ok;
    index_t distance = 0;
    if constexpr (requires { query.distance; }) distance = query.distance;
    const Status s = prim::TurnRows::to_place(ctx, turn.rotation->angles(), queries, turn.positions, distance, out);
    queries = out;
    return s;
  }
  /// Behind `ChosenSlots::lay`: heads that are rows of selection get their numbers, and queries come to stand among listed raw keys. `own`: of the
  /// slots of KV heads, `most`: no row has more slots.
  template <class Heads>
  static Status read(Context<Cuda>& ctx, const prim::ChosenUnits& units, const prim::ChosenRuns& runs, const float* unit_bias, const prim::ListedNumbers& numbers,
                     index_t most, const QueryTurn& turn, const prim::SlotTokens& tokens, const TensorView<float, 3>& standing, const TensorView<float, 3>& far, Heads& heads,
                     prim::AttendRequest& request) {
    prim::ListedNumbers wanted = numbers;
    if (heads.passed.pending == 0) wanted.passed = nullptr;
    if (const Status s = prim::ListNumbers::run(ctx, units, runs, heads.scalars, heads.passed, unit_bias, most, wanted); s != Status::ok) return s;
    heads.scalars = {{numbers.bias, numbers.room}, {numbers.value_scale, numbers.room}, 0};
    heads.passed.passed = {wanted.passed, numbers.room};
    if (!turn.turns()) return Status::ok;
    heads.turn = turn.rotation->view(), heads.turn.places = {numbers.place, numbers.room};
    const prim::RopeAngles& angles = turn.rotation->angles();
    if (turn.reach > 0) {
      if (const Status s = prim::TurnRows::to_place(ctx, angles, request.queries, turn.positions, turn.reach, far); s != Status::ok) return s;
      heads.turn.far = far, heads.turn.reach = turn.reach;
    }
    const Status s = numbers.place == nullptr
                         ? prim::TurnRows::to_list_ends(ctx, angles, request.queries, turn.positions, runs.slots, heads.kv_heads, standing)
                         : prim::TurnRows::to_slots(ctx, angles, request.queries, turn.positions, tokens, units.slots, units.heads, standing);
    request.queries = standing;
    return s;
  }

 private:
  /// Unless a list is read as if it were all, its keys turn by where they lie in their head.
  bool places() const { return raw && positions == retrieve::Positions::stored; }
};

}  // namespace kvcondense::cache
