#pragma once

// What the tests of CUDA words share. The same sources are built in three ways: with KVCONDENSE_CUDA_FIBERS as
// host C++, by nvcc for a device, and by nvcc for an interpreter of its PTX.

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/memory.cuh>

namespace kvcondense::test {

using namespace kvcondense;

inline std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// A stream of its own and a context on it.
class Device {
 public:
  Device() : context_(make()) {}
  ~Device() { static_cast<void>(cudaStreamDestroy(context_.stream())); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  Context<Cuda>& context() { return context_; }
  operator Context<Cuda>&() { return context_; }  // NOLINT(google-explicit-constructor)
  void wait() { REQUIRE(context_.wait() == Status::ok); }

  /// The same stream with this much scratch memory.
  Context<Cuda> with_workspace(std::size_t bytes) {
    REQUIRE(workspace_.resize(static_cast<index_t>(bytes)) == Status::ok);
    return context_.with_workspace(workspace_.bytes());
  }

 private:
  static Context<Cuda> make() {
    cudaStream_t stream = nullptr;
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    const Expected<Context<Cuda>> context = Context<Cuda>::make(stream);
    REQUIRE(context);
    return *context;
  }

  Context<Cuda> context_;
  cuda::DeviceArray<std::byte> workspace_;
};

/// Device memory that refuses after `left` requests, and counts what is out.
struct RefusingMemory final : MemoryResource<Cuda> {
  explicit RefusingMemory(int requests) : left(requests) {}
  int left;
  index_t out = 0;

  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    if (left-- <= 0) return nullptr;
    ++out;
    return cuda::device_memory().allocate(bytes, align);
  }
  void release(void* p, std::size_t bytes, std::size_t align) noexcept override {
    --out;
    cuda::device_memory().release(p, bytes, align);
  }
};

/// Values on the device, read back on demand.
template <class T>
class OnDevice {
 public:
  OnDevice(Device& device, const std::vector<T>& values) : device_(&device) {
    REQUIRE(array_.upload(device, values) == Status::ok);
    device.wait();
  }
  T* data() { return array_.data(); }
  /// As many others, where the first ones were.
  void write(const std::vector<T>& values) {
    REQUIRE(static_cast<index_t>(values.size()) == array_.size());
    REQUIRE(array_.upload(*device_, values) == Status::ok);
    device_->wait();
  }
  std::vector<T> read() const {
    std::vector<T> values(at(array_.size()));
    REQUIRE(array_.download(*device_, std::span<T>(values)) == Status::ok);
    device_->wait();
    return values;
  }

 private:
  Device* device_;
  cuda::DeviceArray<T> array_;
};

/// How often a stream was waited for until now, all of it: only the emulation counts, elsewhere none.
inline int stream_waits() {
#if defined(KVCONDENSE_CUDA_FIBERS)
  return cuda_fibers::runtime.stream_waits;
#else
  return 0;
#endif
}

/// What the host did until now besides enqueuing: only the emulation of fibers counts, elsewhere nothing.
struct HostWork {
  std::size_t allocations = 0;
  int waits = 0;  ///< for streams, and for places in them
  bool operator==(const HostWork&) const = default;
};
inline HostWork host_work() {
#if defined(KVCONDENSE_CUDA_FIBERS)
  return {cuda_fibers::runtime.allocations, cuda_fibers::runtime.waits};
#else
  return {};
#endif
}

/// Runs `use` in every way this build can run kernels: in emulation with threads and blocks in several orders and
/// with copies that land late and at once; on a device once.
template <class Use>
void each_way(Use&& use) {
#if defined(KVCONDENSE_CUDA_FIBERS)
  const cuda_fibers::Options before = cuda_fibers::options;
  for (const std::uint64_t seed : {0u, 3u})
    for (const bool late : {true, false}) {
      cuda_fibers::options.seed = seed;
      cuda_fibers::options.late_copies = late;
      use();
    }
  cuda_fibers::options = before;
#else
  use();
#endif
}

}  // namespace kvcondense::test
