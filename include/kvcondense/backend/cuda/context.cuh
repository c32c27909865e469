#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/dialect.cuh>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense {
namespace cuda {

/// What an error of the CUDA runtime means here. `device_error` stands for all that a caller can only report.
inline Status status_of(cudaError_t e) {
  switch (e) {
    case cudaSuccess: return Status::ok;
    case cudaErrorMemoryAllocation: return Status::out_of_memory;
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration: return Status::invalid_argument;
    case cudaErrorNotSupported:
    case cudaErrorLaunchOutOfResources: return Status::not_supported;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
    case cudaErrorNoKernelImageForDevice: return Status::no_device;
    default: return Status::device_error;
  }
}

/// What the CUDA runtime said of a call that failed, in its own words. A Status folds most of them into one.
struct RuntimeError {
  cudaError_t code = cudaSuccess;

  explicit operator bool() const { return code != cudaSuccess; }
  const char* name() const { return cudaGetErrorName(code); }    ///< "cudaErrorIllegalAddress"
  const char* text() const { return cudaGetErrorString(code); }  ///< a sentence, or less
};

namespace detail {

/// Of this thread of the host, as with cudaGetLastError: memory is asked for, and a device looked for, where no context is at hand.
inline RuntimeError& first_error() {
  thread_local RuntimeError first;
  return first;
}

}  // namespace detail

/// Every call of the runtime ends here: the first error of a thread is kept for Context::error. What is left of a failed call is taken away, so
/// that nobody else meets it. An error that has broken the device stays: CUDA gives it again and again.
inline Status settled(cudaError_t e) {
  if (e == cudaSuccess) return Status::ok;
  static_cast<void>(cudaGetLastError());
  if (RuntimeError& first = detail::first_error(); !first) first = {e};
  return status_of(e);
}

/// What kernels are shaped by. Asked for once; no call of the library asks the device again.
struct DeviceFacts {
  int multiprocessors = 0;
  int capability = 0;                ///< 10 * major + minor: 80, 90, 100
  std::size_t shared_per_block = 0;  ///< dynamic shared memory that a block may ask for
  std::size_t shared_per_multiprocessor = 0;  ///< that blocks have together
};

/// The facts of the current device. `no_device` where there is none, no driver, or one older than compute
/// capability 8.0.
inline Expected<DeviceFacts> device_facts() {
  int count = 0, device = 0, major = 0, minor = 0, shared = 0, shared_by_all = 0;
  DeviceFacts facts;
  if (const cudaError_t e = cudaGetDeviceCount(&count); e != cudaSuccess) return settled(e);
  if (count == 0) return Status::no_device;
  cudaError_t e = cudaGetDevice(&device);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&facts.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&shared_by_all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (e != cudaSuccess) return settled(e);
  if (major < 8) return Status::no_device;
  facts.capability = 10 * major + minor;
  facts.shared_per_block = static_cast<std::size_t>(shared);
  facts.shared_per_multiprocessor = static_cast<std::size_t>(shared_by_all);
  return facts;
}

}  // namespace cuda

/// A stream, the facts of its device, and scratch memory on it. Cheap to copy; borrowed things outlive the call.
///
/// Words only enqueue work on the stream: none allocates, waits, or asks the device anything, so any of them may
/// be captured in a CUDA graph. Calls of a cache may allocate and wait. Two calls may share a workspace when they are on one stream.
template <>
class Context<Cuda> {
 public:
  Context(cudaStream_t stream, const cuda::DeviceFacts& facts, std::span<std::byte> workspace = {})
      : stream_(stream), facts_(facts), workspace_(workspace) {}

  /// For the current device. `no_device` where CUDA is not there; nothing falls back to the CPU.
  static Expected<Context> make(cudaStream_t stream, std::span<std::byte> workspace = {}) {
    const Expected<cuda::DeviceFacts> facts = cuda::device_facts();
    if (!facts) return facts.status();
    return Context(stream, *facts, workspace);
  }

  Context with_workspace(std::span<std::byte> workspace) const { return Context(stream_, facts_, workspace); }
  cudaStream_t stream() const { return stream_; }
  const cuda::DeviceFacts& facts() const { return facts_; }
  std::span<std::byte> workspace() const { return workspace_; }  ///< device memory

  /// Waits until the stream is done. Errors of kernels show here.
  Status wait() const { return cuda::settled(cudaStreamSynchronize(stream_)); }

  /// The first error that the runtime gave to a call of the library on this thread, of any context or none (a maker, memory), since `clear_error`.
  /// `cudaSuccess` where there was none: what the library itself refuses never reached the runtime.
  static cuda::RuntimeError error() { return cuda::detail::first_error(); }
  static void clear_error() { cuda::detail::first_error() = {}; }

 private:
  cudaStream_t stream_;
  cuda::DeviceFacts facts_;
  std::span<std::byte> workspace_;
};

}  // namespace kvcondense
