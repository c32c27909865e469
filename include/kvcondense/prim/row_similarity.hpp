#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/merge_links.hpp>

namespace kvcondense::prim {

/// How alike stored rows of a head are.
///
///   nearest(ctx, const SlotRows<B>& keys, const SlotRows<B>* values, const SlotRange* targets, index_t chunk,
///           MergeLinks) -> Status
///       links every unlinked slot to the target with the largest cosine, and sets likeness to it. Targets are the
///       slots of targets[h] that stay. chunk > 0: only those of [begin, end) in the slot's own chunk, counted from
///       begin.
///       With values the product of both cosines where both are positive, else 0.
///   adjacent(ctx, const SlotRows<B>& keys, RaggedView<float> out) -> Status
///       out[h][j] = cosine of rows j and j + 1; of a head's last row 0.
///   gaussian(ctx, const SlotRows<B>& keys, float sigma, MergeLinks) -> Status
///       likeness of every slot that folds = exp(-distance to its target's row^2 / (2 sigma^2)). sigma 0: for every
///       target the mean distance of its set, itself included, / sqrt(2); where that mean is below 1e-6 all are alike, 1.
///
/// Numbers  float32; cosines of a row of zeros are 0; equal ones: the smaller place. A row with NaN or Inf (or longer
///          than about 1e19) is no target, and stays unlinked; its adjacent cosines are NaN.
/// Cost     nearest: one product per pair, a tile of rows at a time, never the matrix; targets are read once per 32
///          slots that leave. The others: every row once or twice. No workspace.
template <Backend B>
struct RowSimilarity {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
