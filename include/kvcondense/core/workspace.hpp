#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense {

/// Hands out pieces of a caller's scratch memory, 64-byte aligned, in order; never allocates.
///
/// `workspace_bytes` functions are sums of `Scratch::bytes_for`, so the planner and the user of a
/// piece cannot disagree. A null piece means the workspace is too small; nothing was written.
class Scratch {
 public:
  static constexpr std::size_t align = 64;

  Scratch() = default;
  explicit Scratch(std::span<std::byte> bytes) : left_(aligned(bytes)) {}
  /// Where words do not run on the host: `bytes` are theirs alone, `steering` is what the host writes and words read.
  Scratch(std::span<std::byte> bytes, std::span<std::byte> steering) : left_(aligned(bytes)), steering_(aligned(steering)), apart_(true) {}

  template <class T>
  static constexpr std::size_t bytes_for(index_t n) {
    const std::size_t raw = static_cast<std::size_t>(n < 0 ? 0 : n) * sizeof(T);
    return (raw + align - 1) / align * align;
  }

  template <class T>
  T* take(index_t n) {
    return take_from<T>(left_, n);
  }
  /// A piece that the host writes too, as budgets and ends that shape what words do: few numbers per head.
  template <class T>
  T* take_steering(index_t n) {
    return take_from<T>(apart_ ? steering_ : left_, n);
  }

  /// All that is left of what the host writes, as scratch of its own: for code that no word runs.
  Scratch for_host() const {
    Scratch s = *this;
    if (apart_) s.left_ = steering_;
    return s;
  }

  /// Whether pieces that the host writes lie apart from those that words alone use.
  bool apart() const { return apart_; }
  std::span<std::byte> rest() const { return left_; }
  std::size_t left() const { return left_.size(); }

 private:
  static std::span<std::byte> aligned(std::span<std::byte> bytes) {
    const auto at = reinterpret_cast<std::uintptr_t>(bytes.data());
    const std::size_t skip = (align - at % align) % align;
    return bytes.size() >= skip ? bytes.subspan(skip) : std::span<std::byte>{};
  }
  template <class T>
  static T* take_from(std::span<std::byte>& left, index_t n) {
    const std::size_t need = bytes_for<T>(n);
    if (need > left.size()) return nullptr;
    T* p = reinterpret_cast<T*>(left.data());
    left = left.subspan(need);
    // A zero-length piece is still a success and must not look like a refusal.
    return p != nullptr ? p : reinterpret_cast<T*>(align);
  }

  std::span<std::byte> left_{};
  std::span<std::byte> steering_{};
  bool apart_ = false;
};

/// Scratch memory from a resource, sized by a `workspace_bytes` function.
class Workspace {
 public:
  Workspace() = default;
  Workspace(Workspace&& o) noexcept { swap(o); }
  Workspace& operator=(Workspace&& o) noexcept {
    Workspace gone(static_cast<Workspace&&>(o));
    swap(gone);
    return *this;
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (data_ != nullptr) memory_->release(data_, size_, Scratch::align);
  }

  /// At least `bytes`; keeps what it has when that is enough.
  Status reserve(std::size_t bytes, MemoryResource<Cpu>& memory = heap_memory()) {
    if (bytes <= size_) return Status::ok;
    void* p = memory.allocate(bytes, Scratch::align);
    if (p == nullptr) return Status::out_of_memory;
    if (data_ != nullptr) memory_->release(data_, size_, Scratch::align);
    data_ = static_cast<std::byte*>(p);
    size_ = bytes;
    memory_ = &memory;
    return Status::ok;
  }

  std::span<std::byte> bytes() { return {data_, size_}; }

 private:
  void swap(Workspace& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    std::swap(memory_, o.memory_);
  }

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  MemoryResource<Cpu>* memory_ = nullptr;
};

}  // namespace kvcondense
