#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include <kvcondense/backend/cuda/paired_rows.cuh>
#include <kvcondense/cache/page.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/memory.hpp>

namespace kvcondense::cache {

/// A page in device memory and how many caches have it: forks share pages until one of them writes.
struct CudaPage {
  std::byte* rows = nullptr;
  std::size_t bytes = 0;
  CudaPage* under = nullptr;  ///< rows that other heads hold too: `rows` is then what this one has of its own, if anything
  std::uint64_t stays[max_page_slots / 64] = {};  ///< slots whose rows are its own though there are others `under` it
  std::atomic<std::int32_t> owners{1};

  bool shared() const { return owners.load(std::memory_order_acquire) > 1; }
  /// Where kernels read its slots.
  std::byte* at() const { return under == nullptr ? rows : rows == nullptr ? under->rows : prim::PairedHead::tagged(rows); }

  /// Null where memory is refused. Of no bytes: one that has nothing but what is `under` it.
  static CudaPage* make(MemoryResource<Cuda>& memory, std::size_t bytes) {
    void* at = heap_memory().allocate(sizeof(CudaPage), alignof(CudaPage));
    if (at == nullptr) return nullptr;
    void* rows = bytes == 0 ? nullptr : memory.allocate(bytes, 64);
    if (rows == nullptr && bytes > 0) return heap_memory().release(at, sizeof(CudaPage), alignof(CudaPage)), nullptr;
    auto* page = ::new (at) CudaPage;
    page->rows = static_cast<std::byte*>(rows), page->bytes = bytes;
    return page;
  }
  /// The same, of those that wait where one is of that size.
  static CudaPage* take(Buffer<CudaPage*>& spare, MemoryResource<Cuda>& memory, std::size_t bytes) {
    for (index_t i = spare.size() - 1; i >= 0; --i) {
      if (spare[i]->bytes != bytes) continue;
      CudaPage* page = std::exchange(spare[i], spare.back());
      spare.shrink(spare.size() - 1);
      return page;
    }
    return make(memory, bytes);
  }
  static CudaPage* retain(CudaPage* page) {
    page->owners.fetch_add(1, std::memory_order_relaxed);
    return page;
  }
  /// One owner less; the last one gives the memory back.
  static void drop(CudaPage* page, MemoryResource<Cuda>& memory) {
    if (page->owners.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    if (page->under != nullptr) drop(page->under, memory);
    if (page->rows != nullptr) memory.release(page->rows, page->bytes, 64);
    page->~CudaPage();
    heap_memory().release(page, sizeof(CudaPage), alignof(CudaPage));
  }
};

}  // namespace kvcondense::cache
