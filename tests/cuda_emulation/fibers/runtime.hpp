#pragma once

// A stand-in for the part of the CUDA runtime that the library and its tests call. One device, one stream's
// order: everything happens at once, but for what a graph captures (stream.hpp) and for copies from page-locked memory, which land when a
// kernel runs or somebody waits. Tests take the device away, let allocations fail, or ask what was done.

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <new>
#include <vector>

#include "machine.hpp"
#include "stream.hpp"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorIllegalState = 401,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorNotSupported = 801,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
inline constexpr unsigned cudaStreamNonBlocking = 1;
struct CUevent_st {};
using cudaEvent_t = CUevent_st*;
inline constexpr unsigned cudaEventDisableTiming = 2;

namespace cuda_fibers {

/// What the stand-in pretends to be, and what went through it.
struct Runtime {
  int devices = 1;
  int multiprocessors = 4;
  int major = 9, minor = 0;
  std::size_t memory = std::size_t{1} << 33;  ///< of the device
  int allocations_until_refusal = -1;  ///< -1: never refuses
  cudaError_t pending = cudaSuccess;   ///< what cudaGetLastError gives next
  cudaError_t broken = cudaSuccess;    ///< what every call gives from now on, as after a kernel's illegal access
  int calls = 0, fail_at = -1;         ///< calls that may fail; the one that does, once, with `fail_with`
  cudaError_t fail_with = cudaSuccess;
  std::size_t allocated = 0, allocations = 0;
  int stream_waits = 0;  ///< calls in which somebody waited for all of a stream
  int waits = 0;         ///< these, and those for a place in one
  std::map<const void*, std::size_t> may_have;  ///< dynamic shared memory that kernels were allowed
};
inline Runtime runtime;

inline cudaError_t answer(cudaError_t e = cudaSuccess) {
  if (runtime.calls++ == runtime.fail_at) e = runtime.fail_with;
  if (runtime.devices == 0) e = cudaErrorNoDevice;
  if (runtime.broken != cudaSuccess) e = runtime.broken;
  if (e != cudaSuccess) runtime.pending = e;
  return e;
}

/// Of calls that no graph can hold.
inline cudaError_t answer_outside_graphs() { return answer(breaks_capture() ? cudaErrorStreamCaptureUnsupported : cudaSuccess); }

/// Copies from page-locked memory that nobody has waited for yet, in their order.
struct LateCopy {
  void* to;
  const void* from;
  std::size_t bytes;
};
inline std::vector<LateCopy> late_copies;
inline std::map<const unsigned char*, std::size_t> page_locked;  ///< where it begins, bytes

inline void land_copies() {
  for (const LateCopy& c : late_copies) std::memcpy(c.to, c.from, c.bytes);
  late_copies.clear();
}
inline bool is_page_locked(const void* p) {
  const auto* at = static_cast<const unsigned char*>(p);
  const auto next = page_locked.upper_bound(at);
  return next != page_locked.begin() && at < std::prev(next)->first + std::prev(next)->second;
}

/// Device memory: exactly as large as asked for, so that ASan sees one byte too many; it begins as NaN.
struct DeviceBlock {
  std::size_t bytes;
};
inline constexpr std::size_t block_header = 256;

}  // namespace cuda_fibers

inline cudaError_t cudaGetDeviceCount(int* n) {
  *n = cuda_fibers::runtime.devices;
  return cuda_fibers::answer();
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cuda_fibers::answer();
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device) {
  if (device < 0 || device >= cuda_fibers::runtime.devices) return cuda_fibers::answer(cudaErrorInvalidDevice);
  switch (what) {
    case cudaDevAttrMultiProcessorCount: *value = cuda_fibers::runtime.multiprocessors; break;
    case cudaDevAttrComputeCapabilityMajor: *value = cuda_fibers::runtime.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = cuda_fibers::runtime.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(cuda_fibers::most_shared + 1024); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(cuda_fibers::most_shared); break;
  }
  return cuda_fibers::answer();
}
inline cudaError_t cudaMalloc(void** p, std::size_t bytes) {
  *p = nullptr;
  if (const cudaError_t e = cuda_fibers::answer_outside_graphs(); e != cudaSuccess) return e;
  int& left = cuda_fibers::runtime.allocations_until_refusal;
  if (left == 0 || bytes > cuda_fibers::runtime.memory) return cuda_fibers::answer(cudaErrorMemoryAllocation);
  if (left > 0) --left;
  if (bytes == 0) return cudaSuccess;
  auto* block = static_cast<unsigned char*>(
      ::operator new(cuda_fibers::block_header + bytes, std::align_val_t{cuda_fibers::block_header}, std::nothrow));
  if (block == nullptr) return cuda_fibers::answer(cudaErrorMemoryAllocation);
  ::new (block) cuda_fibers::DeviceBlock{bytes};
  *p = block + cuda_fibers::block_header;
  std::memset(*p, 0xff, bytes);
  cuda_fibers::runtime.allocated += bytes, ++cuda_fibers::runtime.allocations;
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  if (p == nullptr) return cuda_fibers::answer();
  if (cuda_fibers::breaks_capture()) return cuda_fibers::answer(cudaErrorStreamCaptureUnsupported);
  cuda_fibers::land_copies();
  auto* block = static_cast<unsigned char*>(p) - cuda_fibers::block_header;
  cuda_fibers::runtime.allocated -= reinterpret_cast<cuda_fibers::DeviceBlock*>(block)->bytes;
  ::operator delete(block, std::align_val_t{cuda_fibers::block_header});
  return cuda_fibers::answer();
}
/// Page-locked memory of the host, which kernels reach too.
inline cudaError_t cudaMallocHost(void** p, std::size_t bytes) {
  const cudaError_t e = cudaMalloc(p, bytes);
  if (e == cudaSuccess && *p != nullptr) cuda_fibers::page_locked[static_cast<unsigned char*>(*p)] = bytes;
  return e;
}
inline cudaError_t cudaFreeHost(void* p) {
  cuda_fibers::page_locked.erase(static_cast<const unsigned char*>(p));
  return cudaFree(p);
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const cudaError_t e = cuda_fibers::answer();
  if (e != cudaSuccess || bytes == 0) return e;
  cuda_fibers::submit(stream, [to, from, bytes, late = kind == cudaMemcpyHostToDevice && cuda_fibers::is_page_locked(from)] {
    if (late) {
      cuda_fibers::late_copies.push_back({to, from, bytes});
      return;
    }
    cuda_fibers::land_copies();
    std::memcpy(to, from, bytes);
  });
  return e;
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t stream) {
  const cudaError_t e = cuda_fibers::answer();
  if (e != cudaSuccess) return e;
  cuda_fibers::submit(stream, [to, byte, bytes] {
    cuda_fibers::land_copies();
    if (bytes > 0) std::memset(to, byte, bytes);
  });
  return e;
}
namespace cuda_fibers {

template <class T>
cudaError_t create(T** made) {
  *made = nullptr;
  const cudaError_t e = answer();
  if (e == cudaSuccess) *made = new T;
  return e;
}
template <class T>
cudaError_t destroy(T* made) {
  delete made;
  return answer();
}

}  // namespace cuda_fibers

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cuda_fibers::create(stream); }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cuda_fibers::destroy(stream); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++cuda_fibers::runtime.stream_waits, ++cuda_fibers::runtime.waits;
  cuda_fibers::land_copies();
  return cuda_fibers::answer_outside_graphs();
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cuda_fibers::create(event); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return cuda_fibers::destroy(event); }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cuda_fibers::answer(); }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) {
  ++cuda_fibers::runtime.waits;
  cuda_fibers::land_copies();
  return cuda_fibers::answer_outside_graphs();
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  const bool has = bytes >= 0 && static_cast<std::size_t>(bytes) <= cuda_fibers::most_shared;
  const cudaError_t e = cuda_fibers::answer(has ? cudaSuccess : cudaErrorInvalidValue);
  if (e == cudaSuccess) cuda_fibers::runtime.may_have[kernel] = static_cast<std::size_t>(bytes);
  return e;
}
inline cudaError_t cudaGetLastError() {
  const cudaError_t e = cuda_fibers::runtime.broken != cudaSuccess ? cuda_fibers::runtime.broken
                                                                   : cuda_fibers::runtime.pending;
  cuda_fibers::runtime.pending = cudaSuccess;
  return e;
}
inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError: return "cudaErrorInitializationError";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorIllegalState: return "cudaErrorIllegalState";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
  }
  return "unrecognized error code";
}
/// The runtime has sentences for them.
inline const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
