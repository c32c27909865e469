#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/memory.hpp>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace kvcondense {

/// Asks the system to back these bytes with huge pages; false: it has none, or will not.
inline bool ask_for_huge_pages([[maybe_unused]] void* p, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(MADV_HUGEPAGE)
  return ::madvise(p, bytes, MADV_HUGEPAGE) == 0;
#else
  return false;
#endif
}

/// Memory in slabs of 2 MiB, each one page of the machine where the system has such pages.
///
/// Idea     attention reads a cache once per token, from end to end. With pages of 4 KiB an address is looked up anew
///          every 64 lines, and the processor's own reading ahead ends there; in slabs pages of a cache lie side by side, and neither happens.
/// Needs    Linux with transparent huge pages `always` or `madvise`; elsewhere the same slabs in plain memory.
/// Shapes   requests of `least_bytes` to `most_bytes` with an alignment of 64, as pages of a cache are, share slabs with others of
///          their size; those of a slab and more are aligned like one; all others, as tables, come from `from` as they are.
/// Cost     a slab is in RAM whole once a part of it is written: `held_bytes()` is what was asked of `from`, `used_bytes()` what
///          of it is given out. A slab that becomes empty goes back, but for one that waits for the next request.
/// Numbers  `huge_bytes()`: of the slabs held, those that the system agreed to; whether it had such pages left is its business.
/// Errors   allocate: null where `from` says so; nothing changes then.
/// Threads  safe from many: one lock around every call, those of `from` included.
class HugeMemory final : public MemoryResource<Cpu> {
 public:
  static constexpr std::size_t slab_bytes = std::size_t{2} << 20;
  static constexpr std::size_t least_bytes = 512, most_bytes = slab_bytes / 8;

  explicit HugeMemory(MemoryResource<Cpu>& from = heap_memory()) : from_(&from), sizes_(from) {}
  HugeMemory(const HugeMemory&) = delete;
  HugeMemory& operator=(const HugeMemory&) = delete;
  /// What was given out is back by then.
  ~HugeMemory() override {
    if (spare_ != nullptr) give_back(spare_);
  }

  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    const std::lock_guard guard(lock_);
    void* p = in_slab(bytes, align) ? take_piece(rounded(bytes)) : take_alone(bytes, align);
    if (p != nullptr) used_ += bytes;
    return p;
  }

  void release(void* p, std::size_t bytes, std::size_t align) noexcept override {
    const std::lock_guard guard(lock_);
    used_ -= bytes;
    if (!in_slab(bytes, align)) {
      held_ -= bytes;
      return from_->release(p, bytes, alone_align(bytes, align));
    }
    auto* slab = reinterpret_cast<Slab*>(reinterpret_cast<std::uintptr_t>(p) / slab_bytes * slab_bytes);
    if (slab->taken == pieces(rounded(bytes))) link(slab);
    slab->free = new (p) Piece{slab->free};
    if (--slab->taken > 0) return;
    unlink(slab);
    if (spare_ != nullptr) give_back(spare_);
    spare_ = slab;
  }

  std::size_t held_bytes() const {
    const std::lock_guard guard(lock_);
    return held_ + sizes_.bytes();
  }
  std::size_t used_bytes() const {
    const std::lock_guard guard(lock_);
    return used_;
  }
  std::size_t huge_bytes() const {
    const std::lock_guard guard(lock_);
    return huge_;
  }

 private:
  static constexpr std::size_t unit = 64;

  struct Piece {
    Piece* next;
  };
  /// What stands at the beginning of a slab.
  struct alignas(unit) Slab {
    Slab *before = nullptr, *behind = nullptr;  ///< among those of its size that have room
    Piece* free = nullptr;                      ///< pieces that came back
    std::size_t fresh = 0, taken = 0;           ///< pieces that were never given out begin here; pieces that are out
    index_t of = 0;                             ///< its size
    bool huge = false;
  };
  static_assert(sizeof(Slab) == unit);

  struct Size {
    std::size_t bytes;
    Slab* room;  ///< slabs with room for one more
  };

  static std::size_t rounded(std::size_t bytes) { return (bytes + unit - 1) / unit * unit; }
  static std::size_t pieces(std::size_t size) { return (slab_bytes - unit) / size; }
  static bool in_slab(std::size_t bytes, std::size_t align) {
    return align == unit && bytes >= least_bytes && bytes <= most_bytes;
  }
  static std::size_t alone_align(std::size_t bytes, std::size_t align) { return bytes >= slab_bytes ? std::max(align, slab_bytes) : align; }

  void* take_alone(std::size_t bytes, std::size_t align) {
    void* p = from_->allocate(bytes, alone_align(bytes, align));
    if (p == nullptr) return nullptr;
    held_ += bytes;
    if (bytes >= slab_bytes) ask_for_huge_pages(p, bytes / slab_bytes * slab_bytes);
    return p;
  }

  void* take_piece(std::size_t size) {
    index_t of = 0;
    while (of < sizes_.size() && sizes_[of].bytes != size) ++of;
    if (of == sizes_.size() && sizes_.push_back({size, nullptr}) != Status::ok) return nullptr;
    Slab* slab = sizes_[of].room;
    if (slab == nullptr) {
      slab = take_slab();
      if (slab == nullptr) return nullptr;
      slab->of = of;
      link(slab);
    }
    void* p = slab->free;
    if (p != nullptr) slab->free = slab->free->next;
    else p = reinterpret_cast<std::byte*>(slab) + unit + slab->fresh++ * size;
    if (++slab->taken == pieces(size)) unlink(slab);
    return p;
  }

  /// An empty slab of no size yet.
  Slab* take_slab() {
    bool huge = false;
    void* p = spare_;
    if (p != nullptr) {
      huge = spare_->huge;
      spare_ = nullptr;
    } else {
      p = from_->allocate(slab_bytes, slab_bytes);
      if (p == nullptr) return nullptr;
      huge = ask_for_huge_pages(p, slab_bytes);
      held_ += slab_bytes;
      if (huge) huge_ += slab_bytes;
    }
    auto* slab = new (p) Slab{};
    slab->huge = huge;
    return slab;
  }
  void give_back(Slab* slab) {
    held_ -= slab_bytes;
    if (slab->huge) huge_ -= slab_bytes;
    from_->release(slab, slab_bytes, slab_bytes);
  }

  void link(Slab* slab) {
    Slab*& first = sizes_[slab->of].room;
    slab->before = nullptr, slab->behind = first;
    if (first != nullptr) first->before = slab;
    first = slab;
  }
  void unlink(Slab* slab) {
    (slab->before != nullptr ? slab->before->behind : sizes_[slab->of].room) = slab->behind;
    if (slab->behind != nullptr) slab->behind->before = slab->before;
  }

  mutable std::mutex lock_;
  MemoryResource<Cpu>* from_;
  Buffer<Size> sizes_;
  Slab* spare_ = nullptr;
  std::size_t held_ = 0, used_ = 0, huge_ = 0;
};

}  // namespace kvcondense
