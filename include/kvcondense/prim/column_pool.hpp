#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// What a pooled score is made of.
enum class Pool : std::uint8_t {
  average,        ///< sum of the taps / kernel: taps beyond the row count as zeros
  average_valid,  ///< mean of the taps inside the row
  maximum,        ///< largest tap inside the row
};

/// Pools scores with their neighbours, stride one, same length.
///
///   run(ctx, RaggedView<const float> in, const Ends* skip, Pool, index_t kernel, RaggedView<float> out)
///       -> Status
///
/// Shapes   in and out share offsets and do not overlap. The row of a head is what lies between the
///          ends `skip[h]` (null: none): the ends are neither read nor written.
/// Numbers  float32, taps added in ascending order. A NaN stays in its own place and is no tap of
///          any other.
/// Errors   invalid_argument when the kernel is even or not positive.
template <Backend B>
struct ColumnPool {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
