#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>

namespace kvcondense::prim {

/// Where the numbers of a tensor of pages lie, in numbers from its first one:
/// page p, head h, slot s, channel d at  p page + h head + s slot + (d / chunk) chunk_step + d % chunk.
struct PagedLayout {
  index_t page = 0;
  index_t head = 0;
  index_t slot = 0;
  index_t chunk = 1;       ///< channels that lie together
  index_t chunk_step = 1;  ///< from one chunk of a row to the next

  constexpr index_t offset(index_t p, index_t h, index_t s, index_t d) const {
    return p * page + h * head + s * slot + d / chunk * chunk_step + d % chunk;
  }
};

/// [pages, slots, heads, dim], as engines call it NHD; `tensors` is 2 where keys and values of a page follow each
/// other in one tensor [pages, 2, slots, heads, dim]: values then begin slots * heads * dim numbers later.
constexpr PagedLayout nhd_layout(index_t slots, index_t heads, index_t dim, index_t tensors = 1) {
  return {tensors * slots * heads * dim, dim, heads * dim, dim, dim};
}
/// [pages, heads, slots, dim], HND; `tensors` as above.
constexpr PagedLayout hnd_layout(index_t slots, index_t heads, index_t dim, index_t tensors = 1) {
  return {tensors * slots * heads * dim, slots * dim, dim, dim, dim};
}
/// vLLM's keys [blocks, heads, dim / x, slots, x], x numbers in 16 bytes; and its values [blocks, heads, dim, slots].
constexpr PagedLayout vllm_key_layout(index_t slots, index_t heads, index_t dim, index_t x) {
  return {heads * dim * slots, dim * slots, x, x, slots * x};
}
constexpr PagedLayout vllm_value_layout(index_t slots, index_t heads, index_t dim) {
  return {heads * dim * slots, dim * slots, 1, 1, slots};
}

/// One row per cell and all heads in it, [cells, heads, dim], as llama.cpp keeps keys: pages of one slot.
constexpr PagedLayout cell_layout(index_t heads, index_t dim) { return nhd_layout(1, heads, dim); }
/// The same by channels, [heads, dim, cells], as it keeps values without flash attention.
constexpr PagedLayout cell_channel_layout(index_t cells, index_t dim) { return {1, dim * cells, 0, 1, cells}; }

/// Keys or values of a pool of pages in an engine's own memory.
struct PagedTensor {
  std::byte* data = nullptr;
  DType dtype = DType::f16;
  index_t dim = 0;
  PagedLayout layout{};

  std::byte* at(index_t page, index_t head, index_t slot, index_t d) const {
    return data + static_cast<std::ptrdiff_t>(layout.offset(page, head, slot, d)) * static_cast<std::ptrdiff_t>(size_of(dtype));
  }
};

/// One layer of one sequence in such a pool: slot s of a head lies in page pages[s / page_slots]. Borrowed, and
/// trusted: `storage::PagedView` checks what an engine hands over.
struct PagedSequence {
  PagedTensor keys;
  PagedTensor values;
  const std::int32_t* pages = nullptr;
  index_t page_slots = 16;
  const index_t* slots = nullptr;  ///< of each head

  index_t page(index_t slot) const { return pages[slot / page_slots]; }
};

}  // namespace kvcondense::prim
