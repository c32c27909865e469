#pragma once

// The names of CUDA C++ that kernels may use, as host C++. What is missing here is not allowed in kernels.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <source_location>
#include <type_traits>

#include "machine.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static  // one OS thread, one block at a time; ASan puts red zones around it

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace cuda_fibers {

using Here = std::source_location;
inline constexpr unsigned all_lanes = 0xffffffffu;

/// The value of lane `source` of the caller's `width` lanes; what the lanes outside the mask hold is nobody's to read.
template <class T>
T shuffled(const Slot* slots, std::uint32_t mask, unsigned source) {
  if ((mask >> source & 1u) == 0) fail("a shuffle reads a lane that its mask does not name");
  return brought<T>(slots[source]);
}

template <class T, class Join>
T reduced(std::uint32_t mask, T value, unsigned line, Join&& join) {
  const Slot* s = meet(mask, WarpOp::reduce, &value, sizeof value, line);
  bool first = true;
  T sum{};
  for (unsigned i = 0; i < warp_size; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    sum = first ? brought<T>(s[i]) : join(sum, brought<T>(s[i]));
    first = false;
  }
  return sum;
}

}  // namespace cuda_fibers

// Barriers.

inline void __syncthreads(cuda_fibers::Here at = cuda_fibers::Here::current()) {
  cuda_fibers::wait_at_barrier(at.line());
}
inline void __syncwarp(unsigned mask = cuda_fibers::all_lanes, cuda_fibers::Here at = cuda_fibers::Here::current()) {
  int* tag = cuda_fibers::next_warp_order();
  cuda_fibers::order_release(tag);
  cuda_fibers::meet(mask, cuda_fibers::WarpOp::sync, nullptr, 0, at.line());
  cuda_fibers::order_acquire(tag);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// Shuffles and votes. As on a GPU they order no memory.

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, cuda_fibers::Here at = cuda_fibers::Here::current()) {
  const auto* s = cuda_fibers::meet(mask, cuda_fibers::WarpOp::shuffle, &value, sizeof value, at.line());
  const unsigned group = ~static_cast<unsigned>(width - 1);
  return cuda_fibers::shuffled<T>(s, mask, (cuda_fibers::lane() & group) | (static_cast<unsigned>(source) & ~group));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  cuda_fibers::Here at = cuda_fibers::Here::current()) {
  const auto* s = cuda_fibers::meet(mask, cuda_fibers::WarpOp::shuffle_xor, &value, sizeof value, at.line());
  const unsigned group = ~static_cast<unsigned>(width - 1), own = cuda_fibers::lane();
  const unsigned source = own ^ static_cast<unsigned>(bits);
  return (source & group) > (own & group) ? value : cuda_fibers::shuffled<T>(s, mask, source % 32);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   cuda_fibers::Here at = cuda_fibers::Here::current()) {
  const auto* s = cuda_fibers::meet(mask, cuda_fibers::WarpOp::shuffle_down, &value, sizeof value, at.line());
  const unsigned own = cuda_fibers::lane(), w = static_cast<unsigned>(width);
  return own % w + by >= w ? value : cuda_fibers::shuffled<T>(s, mask, own + by);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                 cuda_fibers::Here at = cuda_fibers::Here::current()) {
  const auto* s = cuda_fibers::meet(mask, cuda_fibers::WarpOp::shuffle_up, &value, sizeof value, at.line());
  const unsigned own = cuda_fibers::lane(), w = static_cast<unsigned>(width);
  return own % w < by ? value : cuda_fibers::shuffled<T>(s, mask, own - by);
}
inline unsigned __ballot_sync(unsigned mask, int vote, cuda_fibers::Here at = cuda_fibers::Here::current()) {
  const auto* s = cuda_fibers::meet(mask, cuda_fibers::WarpOp::ballot, &vote, sizeof vote, at.line());
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i)
    if ((mask >> i & 1u) != 0 && cuda_fibers::brought<int>(s[i]) != 0) votes |= 1u << i;
  return votes;
}
inline int __any_sync(unsigned mask, int vote, cuda_fibers::Here at = cuda_fibers::Here::current()) {
  return __ballot_sync(mask, vote, at) != 0;
}
inline int __all_sync(unsigned mask, int vote, cuda_fibers::Here at = cuda_fibers::Here::current()) {
  return __ballot_sync(mask, vote, at) == mask;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, cuda_fibers::Here at = cuda_fibers::Here::current()) {
  return cuda_fibers::reduced(mask, value, at.line(), [](T a, T b) { return static_cast<T>(a + b); });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, cuda_fibers::Here at = cuda_fibers::Here::current()) {
  return cuda_fibers::reduced(mask, value, at.line(), [](T a, T b) { return a > b ? a : b; });
}

// Atomics. For TSan they are atomic, relaxed: they order nothing else.

template <class T>
T atomicAdd(T* at, T value) {
  if constexpr (std::is_integral_v<T>) return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
  T old = *at;
  *at = old + value;
  return old;
}
template <class T>
T atomicMax(T* at, T value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  if (value > old) __atomic_store_n(at, value, __ATOMIC_RELAXED);
  return old;
}
template <class T>
T atomicMin(T* at, T value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  if (value < old) __atomic_store_n(at, value, __ATOMIC_RELAXED);
  return old;
}
template <class T>
T atomicAnd(T* at, T value) {
  return __atomic_fetch_and(at, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicOr(T* at, T value) {
  return __atomic_fetch_or(at, value, __ATOMIC_RELAXED);
}

// Arithmetic.

template <class T>
T __ldg(const T* at) {
  return *at;
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
