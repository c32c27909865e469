#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Keeps the first places, the best of all places, and fills what is left with the newest.
///
///   run(ctx, RaggedView<const float> scores, index_t first, index_t best, const index_t* total,
///       RaggedView<int32> slots, index_t* count, index_t* nan) -> Status
///
/// Rows     total[h] >= length: every place. Otherwise the first `first` places, and the `best` largest
///          scores of the whole row (a first place may be among them), then from the last place
///          backwards what is not yet kept, until total[h] places are; never fewer than the first ones.
/// Numbers  as TopK: larger score first, ties keep the smaller place, NaN below -inf.
/// Cost     four passes over the scores; no workspace.
template <Backend B>
struct TopThenNewest {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
