#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/rank_bits.hpp>

namespace kvcondense::prim {

/// Which of equal scores are better.
enum class Ties : std::uint8_t { first, last };

/// Keeps the best places of every row of scores.
///
///   run(ctx, RaggedView<const float> scores, const Ends* always, const index_t* total,
///       RaggedView<int32> slots, index_t* count, index_t* nan, Ties = Ties::first, Ends* ends = nullptr) -> Status
///
/// Shapes   scores and slots share offsets; always (null: none), total and count: one per row.
///          nan (null: not wanted): NaN scores met in rows that were cut are added to it.
///          ends (null: lists are wanted): where all places or all but one stay, a backend may say so in ends[h] and
///          leave the row of `slots` as it is; else ends[h] stays as it was.
/// Rows     total[h] >= length: every place. Otherwise the ends `always[h]` without competing, then
///          the best of the rest until total[h] places are taken; never fewer than the ends.
/// Numbers  larger score first, equal scores (-0 and +0 are equal) keep the smaller place, or with
///          Ties::last the larger; NaN ranks below -inf: the order of the 64-bit key (score, complement
///          of place). Places ascend.
/// Cost     two to four passes over the scores, one more with Ties::last; no workspace.
template <Backend B>
struct TopK {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

/// Counts how many of the best places of all rows together lie in each row.
///
///   run(ctx, RaggedView<const float> scores, const Ends* skip, const index_t* own, index_t k,
///       index_t* count, Scratch&, bool strict = false) -> Status      takes one RowCutoff per row from the scratch
///
/// Shapes   skip (null: none), own (null: none) and count: one per row.
/// Rows     the ends `skip[h]` do not take part. The best own[h] of each row win in any case, k more
///          places go to the best of all that is left. count[h] holds both.
/// Numbers  score descending, then row ascending, then place ascending; NaN below -inf. `strict`: where not all that is left has a place, only what
///          scores more than the last of the k.
/// Errors   workspace_too_small, nothing written.
template <Backend B>
struct TopKCounts {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

/// Lists the places of the ends of every row, ascending.
///
///   run(ctx, const Ends* ends, RaggedView<int32> slots, index_t* count) -> Status
template <Backend B>
struct KeepEnds {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
