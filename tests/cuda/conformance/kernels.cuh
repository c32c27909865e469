#pragma once

// Kernels that do nothing but call a wrapper of backend/cuda/dialect.cuh: words in, words out.

#include <cstdint>

#include <kvcondense/backend/cuda/dialect.cuh>
#include <kvcondense/core/config.hpp>

namespace conformance {

using u32 = std::uint32_t;
namespace cuda = kvcondense::cuda;

inline constexpr int threads = 96;  ///< of a block: three warps
using Kernel = void (*)(const u32* in, u32* out, int n);

__device__ inline float float_of(u32 bits) { return kvcondense::detail::bit_cast<float>(bits); }
__device__ inline u32 bits_of(float x) { return kvcondense::detail::bit_cast<u32>(x); }

// What one thread does with its words.

struct Prmt {
  static constexpr int in = 3, out = 1;
  __device__ static void run(const u32* x, u32* y) { y[0] = cuda::prmt(x[0], x[1], x[2]); }
};
struct AndOr {
  static constexpr int in = 3, out = 1;
  __device__ static void run(const u32* x, u32* y) { y[0] = cuda::and_or(x[0], x[1], x[2]); }
};
struct Half2Pack {
  static constexpr int in = 2, out = 1;
  __device__ static void run(const u32* x, u32* y) {
    y[0] = cuda::half2_pack(float_of(x[0]), float_of(x[1]));
  }
};
struct Half2Fma {
  static constexpr int in = 3, out = 1;
  __device__ static void run(const u32* x, u32* y) { y[0] = cuda::half2_fma(x[0], x[1], x[2]); }
};
struct Half2Mul {
  static constexpr int in = 2, out = 1;
  __device__ static void run(const u32* x, u32* y) { y[0] = cuda::half2_mul(x[0], x[1]); }
};
struct Exp2Fast {
  static constexpr int in = 1, out = 1;
  __device__ static void run(const u32* x, u32* y) {
    y[0] = bits_of(cuda::exp2_fast(float_of(x[0])));
  }
};
/// A, B and what the sum begins with. Whole warps.
struct MmaF16 {
  static constexpr int in = 10, out = 4;
  __device__ static void run(const u32* x, u32* y) {
    const u32 a[4] = {x[0], x[1], x[2], x[3]}, b[2] = {x[4], x[5]};
    float d[4] = {float_of(x[6]), float_of(x[7]), float_of(x[8]), float_of(x[9])};
    cuda::mma_f16(d, a, b);
    for (int i = 0; i < 4; ++i) y[i] = bits_of(d[i]);
  }
};
struct Transpose8x8 {
  static constexpr int in = 1, out = 1;
  __device__ static void run(const u32* x, u32* y) { y[0] = cuda::transpose_8x8(x[0]); }
};

/// `n` threads; where that is no multiple of a warp the last lanes do nothing.
template <class Wrapper>
__global__ void __launch_bounds__(threads) each_thread(const u32* in, u32* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) Wrapper::run(in + i * Wrapper::in, out + i * Wrapper::out);
}

/// A thread has eight words. It copies a grain of the last four, or zeros where the first one is 0,
/// and stores another thread's.
template <int Bytes>
__global__ void __launch_bounds__(threads) copied_grains(const u32* in, u32* out, int n) {
  constexpr int words = Bytes / 4;
  unsigned char* const shared = cuda::dyn_smem();
  const int t = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * threads;
  const int here = n - first < threads ? n - first : threads;
  const auto place = [&](int of) { return shared + (5 * of + 3) % threads * Bytes; };
  const u32* const mine = in + (first + t) * 8;
  if (t < here) cuda::copy_async<Bytes>(place(t), mine + 4, mine[0] != 0);
  cuda::copy_async_commit();
  cuda::copy_async_wait<0>();
  __syncthreads();
  if (t < here)
    for (int w = 0; w < words; ++w)
      out[(first + t) * words + w] = reinterpret_cast<const u32*>(place(here - 1 - t))[w];
}

/// An empty group counts as one: behind it the group before has landed.
template <int Threads>
__global__ void __launch_bounds__(Threads) committed_groups(const u32* in, u32* out, int n) {
  u32* const mine = reinterpret_cast<u32*>(cuda::dyn_smem()) + threadIdx.x;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) cuda::copy_async<4>(mine, in + i);
  cuda::copy_async_commit();
  cuda::copy_async_commit();
  cuda::copy_async_wait<1>();
  if (i < n) out[i] = *mine;
  cuda::copy_async_wait<0>();
}

/// Three groups, each read as soon as a wait guarantees it. A wait that is too weak shows on a
/// device only where copies are slow; emulations show it always.
template <int Threads>
__global__ void __launch_bounds__(Threads) awaited_groups(const u32* in, u32* out, int n) {
  u32* const mine = reinterpret_cast<u32*>(cuda::dyn_smem()) + 3 * threadIdx.x;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  for (int g = 0; g < 3; ++g) {
    if (i < n) cuda::copy_async<4>(mine + g, in + 3 * i + g);
    cuda::copy_async_commit();
  }
  cuda::copy_async_wait<2>();
  if (i < n) out[3 * i] = mine[0];
  cuda::copy_async_wait<1>();
  if (i < n) out[3 * i + 1] = mine[1];
  cuda::copy_async_wait<0>();
  if (i < n) out[3 * i + 2] = mine[2];
}

/// A block's shared memory, all of it: every thread writes its part and reads another's; and where
/// it begins, modulo 128.
inline constexpr int part = 100;
template <int Threads>
__global__ void __launch_bounds__(Threads) shared_parts(const u32* in, u32* out, int n) {
  u32* const words = reinterpret_cast<u32*>(cuda::dyn_smem());
  const int t = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * Threads;
  const int here = n - first < Threads ? n - first : Threads;
  if (t < here)
    for (int i = 0; i < part; ++i) words[i * Threads + t] = in[(first + t) * part + i];
  __syncthreads();
  if (t >= here) return;
  u32* const mine = out + (first + t) * (part + 1);
  for (int i = 0; i < part; ++i) mine[i] = words[i * Threads + here - 1 - t];
  mine[part] = static_cast<u32>(reinterpret_cast<std::uintptr_t>(words) % 128);
}

/// What is forgotten at a barrier is there until then, and what is written behind it stays.
template <int Threads>
__global__ void __launch_bounds__(Threads) forgotten_words(const u32* in, u32* out, int n) {
  u32* const words = reinterpret_cast<u32*>(cuda::dyn_smem());
  const int t = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * Threads;
  const int here = n - first < Threads ? n - first : Threads;
  if (t < here) words[t] = in[first + t];
  __syncthreads();
  cuda::forget_shared();
  const u32 mirrored = t < here ? words[here - 1 - t] : 0;
  __syncthreads();
  if (t < here) words[t] = mirrored;
  __syncthreads();
  if (t < here) out[first + t] = 3 * mirrored + words[(t + 1) % here];
}

}  // namespace conformance
