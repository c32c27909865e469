#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Ranks whose largest ones are a draw without replacement, in which a place comes next with a chance in proportion to
/// exp(scale * x): out[h][j] = scale * out[h][j] + Gumbel noise.
///
///   run(ctx, float scale, std::uint64_t seed, RaggedView<float> out) -> Status
///
/// Numbers  float32; the noise is drawn from (seed, row, place), so it is the same wherever and however often it is asked for, but
///          for the backend's logarithm. Infinities and NaN stay what they are.
template <Backend B>
struct DrawRanks {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
