#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Every `every`-th block of `block` tokens; row h of heads starts `shift` * h blocks earlier.
struct BlockPattern {
  index_t block = 64;
  index_t every = 16;
  index_t shift = 0;

  KVCONDENSE_HD constexpr bool has(index_t token, index_t head) const { return (token / block + 1 + head * shift) % every == 0; }
};

/// Marks the places of every so many blocks of tokens.
///
///   mark(ctx, const BlockPattern&, index_t first, index_t count, RaggedView<float> marks) -> Status
///       the last `count` places of every row are tokens first, first + 1, ...: 1 for those of the
///       pattern, 0 for the others; places before them stay as they are
///
/// Errors   invalid_argument when block or every is not positive, or shift is negative.
template <Backend B>
struct BlockStride {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
