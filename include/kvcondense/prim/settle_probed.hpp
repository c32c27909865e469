#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Scores of slots that were asked about, each used for one choice.
///
///   run(ctx, RaggedView<float> asked, RaggedView<float> out) -> Status
///
/// Numbers  out[h][j] = asked[h][j], or +inf where that is 0; then asked[h][j] becomes +inf where it is not 0.
template <Backend B>
struct SettleProbed {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
