// Registration of programs, and launches.

#include <algorithm>
#include <cstring>

#include "runtime_state.hpp"

namespace ptx {
namespace {

struct CallConfiguration {
  dim3 grid, block;
  std::size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<CallConfiguration> configurations;

Dim3 to_ours(dim3 d) { return {d.x, d.y, d.z}; }

cudaError_t launch(void const* function, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                   cudaStream_t handle) {
  Locked d;
  if (d->sticky != cudaSuccess) return d->result();
  KernelInfo* const kernel = d->kernel(function);
  if (!kernel) return d->result(cudaErrorInvalidDeviceFunction);
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  Function const& f = *kernel->function;
  u64 const threads = to_ours(block).count();
  if (threads == 0 || threads > f.max_threads || threads > 1024 || block.z > 64 || grid.x == 0 ||
      grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    return d->result(cudaErrorInvalidConfiguration);
  // Beyond 48 KiB a kernel must have asked by cudaFuncSetAttribute.
  u64 const total = shared + static_shared_bytes(*kernel->module, f);
  if (total > 48 << 10 && shared > kernel->max_dynamic_shared) return d->result(cudaErrorInvalidValue);
  Launch made;
  made.kernel = &f;
  made.grid = to_ours(grid), made.block = to_ours(block);
  made.dynamic_shared = static_cast<u32>(shared);
  made.params.resize(f.param_bytes);
  for (std::size_t i = 0; i < f.params.size(); ++i)
    std::memcpy(made.params.data() + f.params[i].offset, arguments[i], f.params[i].bytes);
  Device* const device = &d.device;
  d->submit(stream, [device, module = kernel->module, made = std::move(made)] {
    device->counters += run(*module, made, device->memory, device->counting);
  });
  return d->result();
}

}  // namespace
}  // namespace ptx

using ptx::Locked;

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  Locked d;
  d->guarded([&] {
    for (std::string& text : ptx::ptx_of(wrapper)) d->unread.push_back(std::move(text));
  });
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }

void __cudaRegisterFunction(void**, char const* host, char*, char const* name, int, void*, void*,
                            void*, void*, int*) {
  Locked()->kernels[host].name = name;
}
void __cudaRegisterVar(void**, char* host, char*, char const* name, int, std::size_t, int, int) {
  Locked()->variables[host] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream) {
  ptx::configurations.push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  if (ptx::configurations.empty()) return cudaErrorMissingConfiguration;
  auto const c = ptx::configurations.back();
  ptx::configurations.pop_back();
  *grid = c.grid, *block = c.block, *shared = c.shared;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, void const* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               std::size_t shared, cudaStream_t stream) {
  return ptx::launch(kernel, grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchKernel(void const* function, dim3 grid, dim3 block, void** arguments,
                             std::size_t shared, cudaStream_t stream) {
  return ptx::launch(function, grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchKernelExC(cudaLaunchConfig_t const* c, void const* function, void** arguments) {
  for (unsigned i = 0; i < c->numAttrs; ++i) {
    // What asks for blocks that run together is beyond blocks that run one after another.
    auto const id = c->attrs[i].id;
    if (id == cudaLaunchAttributeClusterDimension || id == cudaLaunchAttributeCooperative)
      return Locked()->result(cudaErrorNotSupported);
  }
  return ptx::launch(function, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes, c->stream);
}

cudaError_t cudaFuncSetAttribute(void const* function, cudaFuncAttribute attribute, int value) {
  Locked d;
  ptx::KernelInfo* const kernel = d->kernel(function);
  if (!kernel) return d->result(cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || static_cast<unsigned>(value) + static_shared_bytes(*kernel->module, *kernel->function) > 163 << 10)
      return d->result(cudaErrorInvalidValue);
    kernel->max_dynamic_shared = static_cast<unsigned>(value);
  }
  return d->result();
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* to, void const* function) {
  Locked d;
  ptx::KernelInfo* const kernel = d->kernel(function);
  if (!kernel) return d->result(cudaErrorInvalidDeviceFunction);
  *to = {};
  to->sharedSizeBytes = static_shared_bytes(*kernel->module, *kernel->function);
  to->localSizeBytes = kernel->function->frame_bytes;
  to->maxThreadsPerBlock = static_cast<int>(std::min(1024U, kernel->function->max_threads));
  to->numRegs = 64;
  to->ptxVersion = to->binaryVersion = 80;
  to->maxDynamicSharedSizeBytes = static_cast<int>(
      std::max<std::size_t>(kernel->max_dynamic_shared, (48U << 10) - to->sharedSizeBytes));
  to->preferredShmemCarveout = -1;
  return d->result();
}
cudaError_t cudaFuncGetName(char const** name, void const* function) {
  Locked d;
  auto const found = d->kernels.find(function);
  if (found == d->kernels.end()) return d->result(cudaErrorInvalidDeviceFunction);
  *name = found->second.name.c_str();
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void const* function,
                                                                   int threads, std::size_t shared,
                                                                   unsigned) {
  Locked d;
  ptx::KernelInfo* const kernel = d->kernel(function);
  if (!kernel) return d->result(cudaErrorInvalidDeviceFunction);
  if (threads <= 0) return d->result(cudaErrorInvalidValue);
  int const warps = (threads + 31) / 32;
  std::size_t const each = shared + static_shared_bytes(*kernel->module, *kernel->function) + 1024;
  *blocks = std::min({32, 64 / warps, static_cast<int>((164U << 10) / each)});
  return d->result();
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void const* function,
                                                          int threads, std::size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}

}  // extern "C"
