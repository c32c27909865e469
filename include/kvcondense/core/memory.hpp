#pragma once

#include <cstddef>
#include <new>

#include <kvcondense/core/backend.hpp>

namespace kvcondense {

/// Where a cache gets its bytes. Null means "no"; nothing here throws.
///
/// A resource outlives everything that was made with it. It has to be safe to call from several threads
/// where calls come from them: from the workers of a context, which give back (and at times ask for) pages
/// and tables of the heads they work on, and from caches on different threads that share it.
template <Backend B>
class MemoryResource {
 public:
  virtual ~MemoryResource() = default;
  virtual void* allocate(std::size_t bytes, std::size_t align) noexcept = 0;
  virtual void release(void* p, std::size_t bytes, std::size_t align) noexcept = 0;
};

/// The process heap. Safe from many threads.
class HeapMemory final : public MemoryResource<Cpu> {
 public:
  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    return ::operator new(bytes, std::align_val_t{align}, std::nothrow);
  }
  void release(void* p, std::size_t, std::size_t align) noexcept override {
    ::operator delete(p, std::align_val_t{align});
  }
};

/// The heap resource that makers use when the caller names none.
inline MemoryResource<Cpu>& heap_memory() {
  static HeapMemory heap;
  return heap;
}

}  // namespace kvcondense
