#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/merge_links.hpp>
#include <kvcondense/prim/rope.hpp>

namespace kvcondense::prim {

/// How rows are summed.
enum class RowSplit : std::uint8_t {
  none,       ///< as they are
  direction,  ///< keys as directions and lengths: the sum of directions, as long as the sum of lengths says
};

/// One fold of a layer.
struct CombineRequest {
  MergeLinks links;
  const SlotRange* targets = nullptr;  ///< per head: who may be written
  bool keys = true;
  bool values = true;
  RowSplit split = RowSplit::none;
  const RopeAngles* angles = nullptr;      ///< null: keys are summed as they are
  RaggedView<const std::int32_t> turn{};   ///< positions by which a key turns before
  RaggedView<float> bias{};      ///< empty, or logit biases: those of targets become what keeps, for the newest query,
                                 ///< all that they stand for as heavy as it was
  TensorView<const float, 3> queries{};  ///< [q_heads, tokens, head_dim], for `bias`
  float softmax_scale = 1.0f;
  RaggedView<std::int32_t> order{};  ///< scratch
};

/// The sum that every linear merger is: row of t = key[t] * row of t + sum of key[i] * row of i over what folds into t.
///
///   run(ctx, const CombineRequest&, heads) -> Status
///
/// Source   `heads(kv_head)` gives an object with `key_dim()`, `value_dim()`, `key(slot, float*)`, `value(slot,
///          float*)`, and for slots that may be written `set_key(slot, float*)`, `set_value(...)`, which may change the row they
///          are given.
/// Shapes   a slot that folds is read and never written, a target is written once, after all reads for it.
/// Numbers  float32, members in slot order, whatever the number of workers. Bias per query group: the mean over its
///          heads of log(sum of exp(logit + bias)) minus the logit of the new key, both as stored; where that is no finite
///          number (a NaN in the query, products beyond floats) log(sum of exp(bias)), as where there is no query.
/// Cost     one read per member and target, one sort of the members; order: one number per slot.
template <Backend B>
struct SegmentedCombine {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
