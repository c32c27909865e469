#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// The pages of all heads, filled from the front: slot s of head h lies in page s / page_slots of the head, at
/// s % page_slots. Head h has the pages [offset[h], offset[h + 1]).
struct PageTable {
  std::byte* const* pages = nullptr;
  const index_t* offset = nullptr;
  index_t heads = 0;
  index_t page_slots = 0;
  index_t dim = 0;
};

/// Moves the kept slots of every head to the front, in their order, and nothing else: what evicted slots leave behind
/// is whole pages at the end.
///
///   rows(ctx, codec, PageTable, RaggedView<const int32> keep, const index_t* count) -> Status
///   numbers(ctx, RaggedView<const int32> keep, const index_t* count, RaggedView<float> numbers) -> Status
///
/// Shapes   keep[h][0, count[h]): the slots that stay, ascending; as TopK gives them. Numbers are one per slot.
/// Numbers  rows move byte for byte, with parameters of their own.
/// Cost     one read and one write of the rows that move; none where the first slots stay.
/// Errors   not_supported: a codec whose slots share parameters (they cannot move alone).
template <Backend B>
struct KeepRows {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
