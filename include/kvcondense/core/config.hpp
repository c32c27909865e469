#pragma once

#include <cstddef>
#include <cstdint>

// The only room header in which conditional compilation is allowed.

/// Marks functions that host code and CUDA kernels may both call.
#if defined(__CUDACC__)
#define KVCONDENSE_HD __host__ __device__
#else
#define KVCONDENSE_HD
#endif

/// Tells the compiler that two pointers never overlap. Only inner loops of a backend use it.
#if defined(_MSC_VER)
#define KVCONDENSE_RESTRICT __restrict
#else
#define KVCONDENSE_RESTRICT __restrict__
#endif

namespace kvcondense {

/// Counts and indices of tokens, slots, heads and channels. Signed, so that differences are safe.
using index_t = std::int64_t;

namespace detail {

template <class...>
inline constexpr bool always_false = false;

/// std::bit_cast, which device code may not call.
template <class To, class From>
KVCONDENSE_HD constexpr To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

/// A value that templates see only when they are instantiated.
template <class, class T>
constexpr T dependent(T value) {
  return value;
}

}  // namespace detail
}  // namespace kvcondense
