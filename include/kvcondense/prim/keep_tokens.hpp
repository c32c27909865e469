#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Keeps the slots whose tokens another list names.
///
///   run(ctx, RaggedView<const int32> tokens, RaggedView<const int32> wanted, const index_t* total,
///       RaggedView<int32> slots, index_t* count) -> Status
///
/// Shapes   tokens[h]: of the slots of a head; wanted[h]: any number of tokens. Both ascend, no token is there twice.
/// Rows     total[h] >= length: every slot. Otherwise those whose token is in wanted[h]: fewer than it names where
///          some are not there.
/// Cost     one pass over both lists (on CUDA a search in `wanted` per slot); no workspace.
template <Backend B>
struct KeepTokens {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
