// Allocation and copies.

#include <cstdlib>
#include <cstring>

#include "runtime_state.hpp"

namespace ptx {
namespace {

u64 number(void const* p) { return reinterpret_cast<u64>(p); }

// Where the bytes of a pointer of either side are; null if a device range is not one allocation.
u8* bytes_at(Device& d, void const* p, u64 count) {
  if (in_window(number(p), device_window)) return d.memory.at(number(p), count);
  return static_cast<u8*>(const_cast<void*>(p));
}
bool is_device(void const* p) { return in_window(number(p), device_window); }
bool is_pinned(Device& d, void const* p) {
  Memory::Allocation const* const found = d.memory.find(number(p));
  return found && found->use == Memory::Use::host;
}

bool direction_fits(cudaMemcpyKind kind, void const* to, void const* from) {
  switch (kind) {
    case cudaMemcpyHostToHost: return !is_device(to) && !is_device(from);
    case cudaMemcpyHostToDevice: return is_device(to) && !is_device(from);
    case cudaMemcpyDeviceToHost: return !is_device(to) && is_device(from);
    case cudaMemcpyDeviceToDevice: return is_device(to) && is_device(from);
    default: return true;
  }
}

// Rows of a copy; one row where it is not of two dimensions.
struct Rows {
  u64 width, count = 1, to_pitch = 0, from_pitch = 0;
  u64 to_bytes() const { return count ? (count - 1) * to_pitch + width : 0; }
  u64 from_bytes() const { return count ? (count - 1) * from_pitch + width : 0; }
};

cudaError_t copy(void* to, void const* from, Rows rows, cudaMemcpyKind kind, cudaStream_t handle,
                 bool wait) {
  Locked d;
  if (d->sticky != cudaSuccess) return d->result();
  if (wait && d->breaks_capture()) return d->result(cudaErrorStreamCaptureImplicit);
  if (rows.width == 0 || rows.count == 0) return d->result();
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  if (!direction_fits(kind, to, from)) return d->result(cudaErrorInvalidMemcpyDirection);
  if (!bytes_at(d.device, to, rows.to_bytes()) || !bytes_at(d.device, from, rows.from_bytes()))
    return d->result(cudaErrorInvalidValue);
  // Pageable memory is staged: its bytes are those of now, and a copy to it is waited for.
  bool const to_pageable = !is_device(to) && !is_pinned(d.device, to);
  bool const from_pageable = !is_device(from) && !is_pinned(d.device, from);
  std::shared_ptr<std::vector<u8>> staged;
  if (from_pageable && !stream->capture) {
    auto const* const begin = static_cast<u8 const*>(from);
    staged = std::make_shared<std::vector<u8>>(begin, begin + rows.from_bytes());
  }
  Device* const device = &d.device;
  d->submit(stream, [device, to, from, rows, staged] {
    u8* const target = bytes_at(*device, to, rows.to_bytes());
    u8 const* const source = staged ? staged->data() : bytes_at(*device, from, rows.from_bytes());
    if (!target || !source) throw Fault("a copy whose memory was freed before it ran");
    for (u64 r = 0; r < rows.count; ++r)
      std::memmove(target + r * rows.to_pitch, source + r * rows.from_pitch, rows.width);
  });
  if ((wait || to_pageable) && !stream->capture) d->drain(*stream);
  return d->result();
}

cudaError_t fill(void* to, int value, u64 bytes, cudaStream_t handle) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  if (bytes == 0) return d->result();
  if (!is_device(to) && !is_pinned(d.device, to)) return d->result(cudaErrorInvalidValue);
  if (!bytes_at(d.device, to, bytes)) return d->result(cudaErrorInvalidValue);
  Device* const device = &d.device;
  d->submit(stream, [device, to, value, bytes] {
    u8* const target = bytes_at(*device, to, bytes);
    if (!target) throw Fault("a fill whose memory was freed before it ran");
    std::memset(target, value, bytes);
  });
  return d->result();
}

cudaError_t allocate(void** to, u64 bytes) {
  Locked d;
  if (d->breaks_capture()) return d->result(cudaErrorStreamCaptureUnsupported);
  if (!d->there || bytes > u64{1} << 33) return d->result(cudaErrorMemoryAllocation);
  *to = bytes ? reinterpret_cast<void*>(d->memory.allocate(bytes)) : nullptr;
  return d->result();
}

cudaError_t allocate_host(void** to, u64 bytes) {
  Locked d;
  *to = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096 + (bytes == 0 ? 4096 : 0));
  if (!*to) return d->result(cudaErrorMemoryAllocation);
  d->memory.adopt(*to, bytes);
  return d->result();
}

}  // namespace
}  // namespace ptx

using ptx::Locked;

extern "C" {

cudaError_t cudaMalloc(void** to, std::size_t bytes) { return ptx::allocate(to, bytes); }
cudaError_t cudaMallocAsync(void** to, std::size_t bytes, cudaStream_t) {
  return ptx::allocate(to, bytes);
}
cudaError_t cudaFree(void* p) {
  Locked d;
  if (d->breaks_capture()) return d->result(cudaErrorStreamCaptureUnsupported);
  d->drain_all();
  if (p && !d->memory.release(ptx::number(p))) return d->result(cudaErrorInvalidValue);
  return d->result();
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t handle) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  ptx::Device* const device = &d.device;
  d->submit(stream, [device, p] {
    if (p && !device->memory.release(ptx::number(p))) throw ptx::Fault("memory freed twice");
  });
  return d->result();
}
cudaError_t cudaMallocHost(void** to, std::size_t bytes) { return ptx::allocate_host(to, bytes); }
cudaError_t cudaHostAlloc(void** to, std::size_t bytes, unsigned) {
  return ptx::allocate_host(to, bytes);
}
cudaError_t cudaFreeHost(void* p) {
  Locked d;
  d->drain_all();
  if (!p) return d->result();
  if (!d->memory.release(ptx::number(p))) return d->result(cudaErrorInvalidValue);
  std::free(p);
  return d->result();
}
cudaError_t cudaHostRegister(void* p, std::size_t bytes, unsigned) {
  Locked d;
  d->memory.adopt(p, bytes);
  return d->result();
}
cudaError_t cudaHostUnregister(void* p) {
  Locked d;
  d->drain_all();
  return d->result(d->memory.release(ptx::number(p)) ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaHostGetDevicePointer(void** to, void* p, unsigned) {
  Locked d;
  if (!ptx::is_pinned(d.device, p)) return d->result(cudaErrorInvalidValue);
  *to = p;
  return d->result();
}
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total) {
  Locked d;
  *total = std::size_t{1} << 33;
  *free_bytes = *total - d->memory.in_use();
  return d->result();
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* to, void const* p) {
  Locked d;
  *to = {};
  auto const* const found = d->memory.find(ptx::number(p));
  to->type = !found                                    ? cudaMemoryTypeUnregistered
             : found->use == ptx::Memory::Use::host ? cudaMemoryTypeHost
                                                       : cudaMemoryTypeDevice;
  to->devicePointer = found ? const_cast<void*>(p) : nullptr;
  to->hostPointer = ptx::is_device(p) ? nullptr : const_cast<void*>(p);
  return d->result();
}

cudaError_t cudaMemcpy(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind) {
  return ptx::copy(to, from, {bytes}, kind, nullptr, true);
}
cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return ptx::copy(to, from, {bytes}, kind, stream, false);
}
cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, void const* from, std::size_t from_pitch,
                         std::size_t width, std::size_t height, cudaMemcpyKind kind) {
  return ptx::copy(to, from, {width, height, to_pitch, from_pitch}, kind, nullptr, true);
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, void const* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  return ptx::copy(to, from, {width, height, to_pitch, from_pitch}, kind, stream, false);
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  return ptx::fill(to, value, bytes, nullptr);
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return ptx::fill(to, value, bytes, stream);
}

cudaError_t cudaGetSymbolAddress(void** to, void const* symbol) {
  Locked d;
  ptx::u64 const address = d->variable(symbol);
  if (!address) return d->result(cudaErrorInvalidSymbol);
  *to = reinterpret_cast<void*>(address);
  return d->result();
}
cudaError_t cudaMemcpyToSymbol(void const* symbol, void const* from, std::size_t bytes,
                               std::size_t offset, cudaMemcpyKind) {
  Locked d;
  ptx::u64 const address = d->variable(symbol);
  if (!address) return d->result(cudaErrorInvalidSymbol);
  return ptx::copy(reinterpret_cast<void*>(address + offset), from, {bytes}, cudaMemcpyDefault,
                   nullptr, true);
}
cudaError_t cudaMemcpyFromSymbol(void* to, void const* symbol, std::size_t bytes,
                                 std::size_t offset, cudaMemcpyKind) {
  Locked d;
  ptx::u64 const address = d->variable(symbol);
  if (!address) return d->result(cudaErrorInvalidSymbol);
  return ptx::copy(to, reinterpret_cast<void*>(address + offset), {bytes}, cudaMemcpyDefault,
                   nullptr, true);
}

}  // extern "C"
