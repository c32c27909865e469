#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/memory.hpp>

namespace kvcondense {

/// Memory that words of a backend read, for methods that keep rows of their own whichever backend runs: `Array<T>` has `resize`,
/// `data` and `size`, and is made over a resource; `resource` is the one for callers that name none.
template <Backend B>
struct BackendMemory;

/// Of the CPU: the heap, unless a resource is named.
template <>
struct BackendMemory<Cpu> {
  template <class T>
  using Array = Buffer<T>;
  static MemoryResource<Cpu>& resource() { return heap_memory(); }
};

}  // namespace kvcondense
