#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// The sum of each row over its ends.
///
///   run(ctx, RaggedView<const float> x, const Ends* ends, float* sum) -> Status
///
/// Rows     sum[h]: x[h][j] of all places j in `ends[h]`; where its two parts meet, of all places once.
/// Numbers  float32; the order of sums is the backend's.
template <Backend B>
struct EndsSum {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
