#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// What the output of a head is made of.
struct HeadOutput {
  bool fast = false;  ///< the plain mean of the values, whatever they weigh
  bool ends = false;  ///< slots at the ends too, which stay
};

/// How far the output of a head moves when one slot leaves and the others share its weight: with weights w of
/// sum W and the output X = sum(w * value) / W, the error of slot j is w_j / (W - w_j) * |X - value_j|.
///
///   run(ctx, const SlotRows<B>& values, const Ends* skip, HeadOutput of, RaggedView<float> scores) -> Status
///       weights become errors, in place
///   drop(ctx, const SlotRows<B>& values, RaggedView<const float> weights, const Ends* always, HeadOutput of,
///       const index_t* total, RaggedView<float> left, RaggedView<int32> slots, index_t* count, index_t* nan)
///       the slot of the smallest error leaves, then that of the smallest among the others, until total[h] are
///       left; Status
///
/// Shapes   slots at the ends get no errors: `run` leaves their weights as they are, `drop` keeps them. They are in W
///          and X where `of.ends` says so, else in neither. `drop` lists slots as `TopK` does, adds NaN of cut rows
///          between the ends to `nan` (null: not wanted), and writes `left` (scratch).
/// Numbers  float32, sums over slots in float64; W - w_j is at least W / 1e6. Weights are not negative. A
///          weight of NaN, or a value with NaN or Inf, is in no sum and has the error NaN; it leaves first. Where
///          W is 0 all errors are. Of equal errors the larger slot leaves.
/// Cost     run: two reads of the values, a tile at a time. drop: one, and one for each slot that leaves. Ends are read
///          once, for the sums, or not at all.
template <Backend B>
struct OutputError {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
