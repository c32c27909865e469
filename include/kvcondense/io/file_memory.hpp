#pragma once

// POSIX only (mmap), so no umbrella header brings this one.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <span>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/page_provider.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::io {

/// Memory that lies in a file: pages of a cache that are not read need no RAM.
///
/// Idea     the machine moves pages of a mapped file in when they are touched and out when RAM is short; a retrieval stage
///          touches few of them in a step. Nothing of a cache changes but its resource.
/// Needs    a POSIX host, and a folder for a file without a name (it is gone with the process).
/// Shapes   requests of `least` bytes and more lie in the file, in slabs of `slab` bytes or of their own; smaller ones, like
///          tables that every step reads, come from `small`.
/// Cost     three system calls per slab. A released piece is used again by requests of its size.
/// Numbers  `file_bytes()` is what the file has, blocks of the disk and no holes; how much of it is in RAM is the machine's
///          business, until `let_go()` asks it to keep none.
/// Errors   open: io_error; allocate: null when the disk, what a process may write or the addresses are at an end.
/// Threads  safe from many: one lock around every call, those of `small` included.
class FileMemory final : public MemoryResource<Cpu>, public SlowMemory {
 public:
  explicit FileMemory(MemoryResource<Cpu>& small = heap_memory()) : small_(&small), slabs_(small), free_(small) {}
  FileMemory(const FileMemory&) = delete;
  FileMemory& operator=(const FileMemory&) = delete;
  ~FileMemory() override {
    for (const Slab& s : slabs_) ::munmap(s.data, s.bytes);
    if (file_ >= 0) ::close(file_);
  }

  /// Makes the file; `folder` on a disk, since a folder in RAM saves nothing.
  Status open(const char* folder, std::size_t slab = std::size_t{64} << 20, std::size_t least = 4096) {
    const std::lock_guard guard(lock_);
    if (file_ >= 0 || slab < least || least == 0) return Status::invalid_argument;
    file_ = ::open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file_ < 0) return Status::io_error;
    page_ = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    slab_ = round(slab, page_);
    least_ = least;
    return Status::ok;
  }

  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    const std::lock_guard guard(lock_);
    if (file_ < 0 || bytes < least_ || align > unit) return small_->allocate(bytes, align);
    const std::size_t size = round(bytes, unit);
    for (index_t i = free_.size() - 1; i >= 0; --i)
      if (free_[i].bytes == size) {
        void* p = free_[i].data;
        free_[i] = free_.back();
        free_.shrink(free_.size() - 1);
        return p;
      }
    // Room to remember the piece when it comes back: then releasing cannot fail.
    if (free_.reserve(pieces_ + 1) != Status::ok) return nullptr;
    if (slabs_.empty() || slabs_.back().bytes - used_ < size)
      if (!extend(std::max(slab_, round(size, page_)))) return nullptr;
    void* p = static_cast<std::byte*>(slabs_.back().data) + used_;
    used_ += size;
    ++pieces_;
    return p;
  }

  void release(void* p, std::size_t bytes, std::size_t align) noexcept override {
    const std::lock_guard guard(lock_);
    if (!inside(p)) return small_->release(p, bytes, align);
    free_.append_reserved({p, round(bytes, unit)});
  }

  std::size_t file_bytes() const {
    const std::lock_guard guard(lock_);
    return file_bytes_;
  }
  bool holds(const void* p) const {
    const std::lock_guard guard(lock_);
    return inside(p);
  }

  /// Writes what changed and keeps nothing of the file mapped in: the next reads bring back what they touch.
  Status let_go() {
    const std::lock_guard guard(lock_);
    for (const Slab& s : slabs_)
      if (::msync(s.data, s.bytes, MS_ASYNC) != 0 || ::madvise(s.data, s.bytes, MADV_DONTNEED) != 0) return Status::io_error;
    return Status::ok;
  }
  /// Reads from the file, so that nothing of it is mapped in.
  bool fetch(const std::byte* from, std::span<std::byte> to) noexcept override {
    std::size_t at = 0;
    {
      const std::lock_guard guard(lock_);
      const Slab* slab = slab_of(from);
      if (slab == nullptr) return std::memcpy(to.data(), from, to.size()), true;
      at = slab->at + static_cast<std::size_t>(from - static_cast<const std::byte*>(slab->data));
    }
    while (!to.empty()) {
      const ssize_t n = ::pread(file_, to.data(), to.size(), static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      to = to.subspan(static_cast<std::size_t>(n)), at += static_cast<std::size_t>(n);
    }
    return true;
  }
  void expect(const std::byte* p, std::size_t bytes) noexcept override {
    const std::lock_guard guard(lock_);
    if (!inside(p)) return;
    const auto first = reinterpret_cast<std::uintptr_t>(p) / page_ * page_;
    const auto last = round(reinterpret_cast<std::uintptr_t>(p) + bytes, page_);
    (void)::madvise(reinterpret_cast<void*>(first), last - first, MADV_WILLNEED);
  }

 private:
  static constexpr std::size_t unit = 64;
  struct Slab {
    void* data;
    std::size_t bytes;
    std::size_t at = 0;  ///< in the file
  };
  const Slab* slab_of(const void* p) const {
    for (const Slab& s : slabs_)
      if (p >= s.data && p < static_cast<const std::byte*>(s.data) + s.bytes) return &s;
    return nullptr;
  }
  bool inside(const void* p) const { return slab_of(p) != nullptr; }
  static std::size_t round(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

  bool extend(std::size_t bytes) {
    if (slabs_.reserve(slabs_.size() + 1) != Status::ok) return false;
    const auto end = static_cast<off_t>(file_bytes_), more = static_cast<off_t>(bytes);
    // Blocks now: where a hole is written to, a full disk is a signal and no answer.
    int error = 0;
    while ((error = ::posix_fallocate(file_, end, more)) == EINTR) {
    }
    void* p = error != 0 ? MAP_FAILED : ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_, end);
    if (p == MAP_FAILED) {
      // Some of the blocks may be there.
      [[maybe_unused]] const int shrunk = ::ftruncate(file_, end);
      return false;
    }
    // Reading ahead would bring in what no step asks for.
    (void)::madvise(p, bytes, MADV_RANDOM);
    slabs_.append_reserved({p, bytes, file_bytes_});
    file_bytes_ += bytes;
    used_ = 0;
    return true;
  }

  mutable std::mutex lock_;
  MemoryResource<Cpu>* small_;
  Buffer<Slab> slabs_;
  Buffer<Slab> free_;  ///< pieces that came back
  index_t pieces_ = 0;
  int file_ = -1;
  std::size_t page_ = 4096, slab_ = 0, least_ = 4096;
  std::size_t used_ = 0, file_bytes_ = 0;
};

}  // namespace kvcondense::io
