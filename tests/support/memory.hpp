#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <new>

#include <kvcondense/core/memory.hpp>

namespace kvcondense::test {

/// Counts what is asked and returned, checks sizes and alignment, and can refuse from the n-th request on.
/// Caches on several threads may share one.
class CountingMemory : public MemoryResource<Cpu> {
 public:
  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    const std::lock_guard guard(lock_);
    if (refuse_from >= 0 && requests >= refuse_from) return nullptr;
    ++requests;
    void* p = ::operator new(bytes, std::align_val_t{align}, std::nothrow);
    live_bytes += bytes;
    peak_bytes = live_bytes > peak_bytes ? live_bytes : peak_bytes;
    known[p] = {bytes, align};
    return p;
  }
  void release(void* p, std::size_t bytes, std::size_t align) noexcept override {
    const std::lock_guard guard(lock_);
    const auto at = known.find(p);
    if (at == known.end() || at->second.first != bytes || at->second.second != align) {
      ++wrong_releases;
      return;
    }
    known.erase(at);
    live_bytes -= bytes;
    ::operator delete(p, std::align_val_t{align});
  }

  long requests = 0;
  long refuse_from = -1;  ///< -1: never
  long wrong_releases = 0;
  std::size_t live_bytes = 0;
  std::size_t peak_bytes = 0;
  std::map<void*, std::pair<std::size_t, std::size_t>> known;

 private:
  std::mutex lock_;
};

}  // namespace kvcondense::test
