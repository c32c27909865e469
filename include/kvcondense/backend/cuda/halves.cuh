#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/dialect.cuh>
#include <kvcondense/backend/cuda/ring_layout.cuh>
#include <kvcondense/prim/group_quant.hpp>

// Rows in shared memory as pairs of halves in registers, as tensor cores take them. A unit is eight channels. A pair
// of key numbers is channels i and i + 4 of a unit; a pair of values is one channel of two slots. What is summed over
// may come in any order, so codes are never rearranged: queries and sums follow the order that unpacking gives.

namespace kvcondense::prim::cuda_kernels {

/// A code in the mantissa of 1024 reads 1024 + code * 2^shift: pair i of a unit has this shift.
template <int Bits>
__device__ constexpr std::uint32_t raw_shift(int i) {
  return static_cast<std::uint32_t>(i * Bits % 8);
}
/// 2^-shift and -1024 * 2^-shift, as two halves each.
__device__ constexpr std::uint32_t raw_inverse(std::uint32_t shift) { return ((15u - shift) << 10) * 0x10001u; }
__device__ constexpr std::uint32_t raw_offset(std::uint32_t shift) { return (0x8000u | (25u - shift) << 10) * 0x10001u; }
inline constexpr std::uint32_t raw_zero = 0x64006400u, minus_raw_zero = 0xe400e400u;  ///< 1024, -1024

/// The first N codes of both 16-bit halves of a word, raw.
template <int Bits, int N>
__device__ inline void raw_16(std::uint32_t w, std::uint32_t* pair) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const std::uint32_t mask = ((1u << Bits) - 1u) << raw_shift<Bits>(i);
    pair[i] = cuda::and_or(i * Bits < 8 ? w : w >> 8, mask * 0x10001u, raw_zero);
  }
}
/// Raw codes as numbers, exactly.
template <int Bits>
__device__ inline std::uint32_t code_of_raw(std::uint32_t raw, int i) {
  return cuda::half2_fma(raw, raw_inverse(raw_shift<Bits>(i)), raw_offset(raw_shift<Bits>(i)));
}

/// Halves (x[2i], x[2i + 1]) of two words become (first of a, first of b), or the second ones.
__device__ inline std::uint32_t first_of(std::uint32_t a, std::uint32_t b) { return cuda::prmt(a, b, 0x5410u); }
__device__ inline std::uint32_t second_of(std::uint32_t a, std::uint32_t b) { return cuda::prmt(a, b, 0x7632u); }

template <int Bytes>
__device__ inline void read_words(const std::byte* at, std::uint32_t* w) {
  if constexpr (Bytes == 16) {
    const uint4 v = *reinterpret_cast<const uint4*>(at);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  } else if constexpr (Bytes == 8) {
    const uint2 v = *reinterpret_cast<const uint2*>(at);
    w[0] = v.x, w[1] = v.y;
  } else if constexpr (Bytes == 4) {
    w[0] = *reinterpret_cast<const std::uint32_t*>(at);
  } else {
    w[0] = *reinterpret_cast<const std::uint16_t*>(at);
  }
}

/// A unit of halves: four pairs (channels i, i + 4).
__device__ inline void exact_key_unit(const std::byte* at, std::uint32_t* pair) {
  std::uint32_t w[4];
  read_words<16>(at, w);
  pair[0] = first_of(w[0], w[2]), pair[1] = second_of(w[0], w[2]);
  pair[2] = first_of(w[1], w[3]), pair[3] = second_of(w[1], w[3]);
}
/// A unit of two rows of halves: eight pairs (channel of a, channel of b).
__device__ inline void exact_value_unit(const std::byte* a, const std::byte* b, std::uint32_t* pair) {
  std::uint32_t x[4], y[4];
  read_words<16>(a, x), read_words<16>(b, y);
#pragma unroll
  for (int i = 0; i < 4; ++i) pair[2 * i] = first_of(x[i], y[i]), pair[2 * i + 1] = second_of(x[i], y[i]);
}

/// Unit `u` of words of key codes, raw, in the pairs of halves.
template <int Bits>
__device__ inline void raw_key_unit(const std::uint32_t* w, int u, std::uint32_t* pair) {
  if constexpr (Bits == 2) {
    raw_16<2, 4>(cuda::prmt(w[u / 2], 0, u % 2 == 0 ? 0x4140u : 0x4342u), pair);  // codes 0 to 3 below, 4 to 7 above
  } else if constexpr (Bits == 4) {
    raw_16<4, 4>(w[u], pair);
  } else {
    raw_16<8, 2>(first_of(w[2 * u], w[2 * u + 1]), pair);
    raw_16<8, 2>(second_of(w[2 * u], w[2 * u + 1]), pair + 2);
  }
}
/// A unit of two rows of value codes: eight pairs of numbers.
template <int Bits>
__device__ inline void coded_value_unit(const std::byte* a, const std::byte* b, std::uint32_t* pair) {
  std::uint32_t x[2], y[2];
  read_words<Bits>(a, x), read_words<Bits>(b, y);
  if constexpr (Bits == 2) {
    raw_16<2, 8>(x[0] | y[0] << 16, pair);
  } else if constexpr (Bits == 4) {
    raw_16<4, 4>(first_of(x[0], y[0]), pair), raw_16<4, 4>(second_of(x[0], y[0]), pair + 4);
  } else {
    raw_16<8, 2>(first_of(x[0], y[0]), pair), raw_16<8, 2>(second_of(x[0], y[0]), pair + 2);
    raw_16<8, 2>(first_of(x[1], y[1]), pair + 4), raw_16<8, 2>(second_of(x[1], y[1]), pair + 6);
  }
#pragma unroll
  for (int i = 0; i < unit; ++i) pair[i] = code_of_raw<Bits>(pair[i], i);
}

/// Number = code * scale + base: how bases come from scales and offsets, without branches.
struct BaseRule {
  bool minimum, offsets;
  std::uint32_t middle;  ///< of forms without offsets: base = scale * middle
  template <int Bits>
  __device__ explicit BaseRule(const GroupInt<Bits>& codec) : minimum(codec.form == GroupForm::minimum), offsets(has_offset(codec.form)) {
    constexpr int half = (1 << (Bits - 1)) - 1;
    const float m = codec.form == GroupForm::symmetric ? -static_cast<float>(half) : -0.5f * static_cast<float>((1 << Bits) - 1);
    middle = cuda::half2_pack(m, m);
  }
  __device__ explicit BaseRule(const ExactRows&) : minimum(true), offsets(false), middle(0) {}

  /// Of two groups. Where there are no offsets `offset` is anything.
  __device__ std::uint32_t base(std::uint32_t scale, std::uint32_t offset) const {
    const std::uint32_t product = cuda::half2_mul(scale, offsets ? offset ^ 0x80008000u : middle);
    return minimum ? offset : product;
  }
};

/// Scale and base of one group of two slots (or of one, twice), whose parameters on the token axis are at a and b.
struct PairScale {
  std::uint32_t scale, base;
};
__device__ inline PairScale pair_scale(const BaseRule& rule, const std::byte* a, const std::byte* b, int group, int groups) {
  const auto both = [&](int j) {
    std::uint32_t x, y;
    read_words<2>(a + 2 * j, &x), read_words<2>(b + 2 * j, &y);
    return x | y << 16;
  };
  const std::uint32_t scale = both(group);
  return {scale, rule.base(scale, both(rule.offsets ? groups + group : group))};
}

}  // namespace kvcondense::prim::cuda_kernels
