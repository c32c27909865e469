#pragma once

#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/merge_links.hpp>

namespace kvcondense::prim {

/// Which runs of neighbours become one slot.
struct RunRequest {
  const SlotRange* region = nullptr;  ///< per head; only [begin, end) is looked at
  float least = 0.75f;                ///< neighbours join when they are more alike than this
  const index_t* sets = nullptr;      ///< null: by `least`; else this many sets in the region of each head
  double heavy = 0.0;                 ///< this part of a region's slots, the best by score, stay alone
};

/// Tokens [first, last) of a head.
struct TokenSpan {
  index_t first = 0, last = 0;
};

/// Where slots of a head lie that hold tokens of a span and may be written; and this part of them, rounded down.
struct SpannedSlots {
  SlotRange region{};
  index_t part = 0;

  /// [from, to): those that hold tokens of the span.
  KVCONDENSE_HD static SpannedSlots of(index_t from, index_t to, const SlotRange& targets, double share) {
    if (from >= to) return {};
    const index_t begin = from < targets.begin ? targets.begin : from, end = to < targets.end ? to : targets.end;
    SpannedSlots s;
    s.region = {0, begin, end < begin ? begin : end};
    s.part = static_cast<index_t>(floor(share * static_cast<double>(s.region.end - s.region.begin) + 1e-6));
    return s;
  }
};

/// Who folds into whom, where that is found from numbers and places alone.
///
///   begin(ctx, RaggedView<const int32> kept, const index_t* count, MergeLinks)
///       to: own place for the kept slots (ascending; all where count says so), unlinked for the others
///   end(ctx, MergeLinks, RaggedView<int32> kept, index_t* count, index_t* folded)
///       the slots that stay, and how many of the others fold
///   drop(ctx, MergeLinks)                      what is unlinked leaves for good
///   heirs(ctx, RaggedView<const int32> heirs, MergeLinks)
///       every slot that is not its own heir to that one if it stays; else it leaves for good. An heir is its own.
///   next(ctx, const SlotRange* targets, MergeLinks)
///       every unlinked slot to the next slot behind it that stays and may be written; likeness 1
///   nearest_token(ctx, RaggedView<const int32> tokens, index_t first, index_t last, const SlotRange* targets, MergeLinks)
///       every unlinked slot to the target of [first, last) whose token is nearest, the older of two; likeness minus the
///       distance
///   spans(ctx, RaggedView<const int32> tokens, const TokenSpan* spans, const SlotRange* targets, double share, SlotRange* region,
///         index_t* parts)
///       region[h]: the slots of head h that hold tokens of its span and lie in [begin, end) of its targets; parts[h]: the floor of
///       `share` of them. Of a span without tokens there are none
///   runs(ctx, const RunRequest&, RaggedView<const float> scores, MergeLinks)
///       slots that stay to the best of their run by score, the first of equal ones; likeness comes in as that of
///       neighbours and goes out as 1
///   alternate(ctx, const SlotRange* region, MergeLinks)
///       of the slots of [begin, end) that stay the first, third, ... become unlinked
///   strongest(ctx, const SlotRange* region, index_t chunk, const index_t* most, MergeLinks)
///       of the slots of [begin, end) that fold, the most[h] with the largest likeness do so, in every chunk or in
///       all; the first of equal ones. The others, and those that found no target, stay.
///
/// Numbers  NaN scores rank below all others; a likeness of NaN joins nothing.
/// Cost     a few passes over the slots; no workspace.
template <Backend B>
struct MergeSets {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

/// Which slots that found a target fold into it; the others leave for good.
///
///   least(ctx, float likeness, MergeLinks)            those at least so like their target
///   mean(ctx, MergeLinks)                             those at least as like as a head's slots are in the mean
///   moving_mean(ctx, float keep, float add, TensorView<float, 2> state, MergeLinks)
///       the same against a mean that moves: the first time the mean m of a head's slots, then
///       state = keep * state + add * m, before it is used. state [heads, 2]: the mean, and whether there is one.
///   best_part(ctx, double part, MergeLinks)           the ceil(part * number) most like ones of each head
///   best_scores(ctx, RaggedView<const float> scores, double per_target, MergeLinks)
///       before a finder: of the unlinked slots the floor(per_target * slots that stay) with the best scores
///   chance(ctx, RaggedView<const float> scores, const SlotRange* targets, RaggedView<const int32> tokens,
///          std::uint64_t seed, MergeLinks)
///       each with the probability score / mean score of the targets it has (`fan`), at most 1; 0 / 0 is 0. The
///       random number is that of (seed, head, token), whenever it is drawn.
///
/// Numbers  float32, sums in slot order; NaN passes nothing. What is less than 1e-6 below a mean passes: where all are
///          alike, rounding must not tell them apart.
template <Backend B>
struct MergeFilter {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
