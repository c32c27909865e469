#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// How many places of each row score at least as much as a threshold.
///
///   run(ctx, RaggedView<const float> scores, const Ends* skip, float least, index_t* count) -> Status
///
/// Rows     count[h]: places between the ends `skip[h]` (null: none) whose score is >= least.
/// Numbers  a NaN is above nothing.
template <Backend B>
struct CountAbove {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
