#pragma once

// The one place that names PTX, and the one that knows whether kernels are compiled for a device or run as host
// C++ (KVCONDENSE_CUDA_FIBERS, in tests). Kernels use these wrappers and plain CUDA C++.

#if defined(KVCONDENSE_CUDA_FIBERS)
#include <cuda_emulation/fibers/cuda.hpp>
#elif !defined(__CUDACC__)
#error "kvcondense: kvcondense/cuda.cuh is for files that a CUDA compiler compiles (nvcc -std=c++20)."
#else

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace kvcondense::cuda {

inline constexpr std::uint32_t full_warp = 0xffffffffu;

/// Dynamic shared memory of the block, 128-byte aligned.
__device__ __forceinline__ unsigned char* dyn_smem() {
  extern __shared__ __align__(128) unsigned char kvcondense_shared[];
  return kvcondense_shared;
}
/// Behind the next barrier of the block nobody reads what dynamic shared memory holds, before it is written anew; no copy into it is under way
/// then. All threads call it. It tells emulation, and does nothing.
__device__ __forceinline__ void forget_shared() {}

/// Four bytes of b:a by four selectors; bit 3 of a selector repeats the byte's sign. Not __byte_perm, which
/// ignores that bit.
__device__ __forceinline__ std::uint32_t prmt(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  std::uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
  return r;
}
/// (a & mask) | bits
__device__ __forceinline__ std::uint32_t and_or(std::uint32_t a, std::uint32_t mask, std::uint32_t bits) {
  std::uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "r"(mask), "r"(bits));
  return r;
}

// Two halves in a word, the first in the low bits; each result rounded once, to nearest even.

__device__ __forceinline__ std::uint32_t half2_pack(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
__device__ __forceinline__ std::uint32_t half2_mul(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
/// 2^x to about 2 units in the last place; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

/// Starts a copy of 4, 8 or 16 bytes, aligned to their number, from global to shared memory; not `take`: writes zeros,
/// reads nothing. Sixteen bytes do not stay in the first cache.
template <int Bytes = 16>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool take = true) {
  const auto shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = take ? Bytes : 0;
  if constexpr (Bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(from), "n"(Bytes), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// All but the newest N groups of this thread have landed. Other threads see them after a barrier.
template <int N>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/// d (16 x 8) += a (16 x 16) times b (16 x 8), halves in, float32 sums; PTX's fragment layout. All lanes.
__device__ __forceinline__ void mma_f16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// The transpose of an 8 x 8 matrix of 16-bit elements, a row in four lanes. All lanes.
__device__ __forceinline__ std::uint32_t transpose_8x8(std::uint32_t v) {
  std::uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

namespace detail {

/// Answers for this launch alone: an error that the caller left with the runtime stays there, so <<<>>> and cudaGetLastError will not do.
template <class... P, class... A>
cudaError_t start_kernel(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                         A&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<A&&>(arguments)...);
}

}  // namespace detail
}  // namespace kvcondense::cuda

#endif
