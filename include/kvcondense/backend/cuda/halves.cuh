#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/dialect.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/slot_runs.hpp>

// Rows of pages as pairs of halves in registers, as tensor cores take them. A unit is eight channels. A pair of key
// numbers is channels i and i + 4 of a unit; a pair of values is one channel of two slots. What is summed over may
// come in any order, so codes are never rearranged: queries and sums follow the order that unpacking gives.

namespace kvcondense::prim::cuda_kernels {

inline constexpr int unit = 8;

/// A row and its parameters. No parameters: a row of halves.
struct RowAt {
  const std::byte* row;
  const std::byte* params;
};

template <class Codec>
__device__ inline RowAt row_at(const Codec& codec, int page_slots, int dim, const SlotRun& run) {
  if constexpr (!std::is_same_v<Codec, ExactRows>) {
    if (run.coded) {
      const RowPage<Codec> page(codec, run.page, page_slots, dim);
      return {page.row(run.place), page.params(run.place)};
    }
  }
  return {run.page + static_cast<std::size_t>(run.place) * static_cast<std::size_t>(2 * dim), nullptr};
}

/// The first N codes of both 16-bit halves of a word, as pairs of halves. A code in the mantissa of 1024 reads
/// 1024 + code * 2^shift; one fused step takes off both, exactly.
template <int Bits, int N>
__device__ inline void unpack_16(std::uint32_t w, std::uint32_t* pair) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const std::uint32_t shift = static_cast<std::uint32_t>(i * Bits % 8), mask = ((1u << Bits) - 1u) << shift;
    const std::uint32_t raw = cuda::and_or(i * Bits < 8 ? w : w >> 8, mask | mask << 16, 0x64006400u);
    const std::uint32_t inverse = (15u - shift) << 10, offset = 0x8000u | (25u - shift) << 10;
    pair[i] = cuda::half2_fma(raw, inverse | inverse << 16, offset | offset << 16);
  }
}

/// Halves (x[2i], x[2i + 1]) of two words become (first of a, first of b), or the second ones.
__device__ inline std::uint32_t first_of(std::uint32_t a, std::uint32_t b) { return cuda::prmt(a, b, 0x5410u); }
__device__ inline std::uint32_t second_of(std::uint32_t a, std::uint32_t b) { return cuda::prmt(a, b, 0x7632u); }

/// Number j of an array of halves, twice.
__device__ inline std::uint32_t both_halves(const std::byte* at, int j) {
  const std::uint32_t h = reinterpret_cast<const std::uint16_t*>(at)[j];
  return h | h << 16;
}

/// Unit u of a row of halves: four pairs (channels i, i + 4).
__device__ inline void exact_key_unit(const std::byte* row, int u, std::uint32_t* pair) {
  const uint4 v = reinterpret_cast<const uint4*>(row)[u];
  pair[0] = first_of(v.x, v.z), pair[1] = second_of(v.x, v.z);
  pair[2] = first_of(v.y, v.w), pair[3] = second_of(v.y, v.w);
}
/// Unit u of two rows of halves: eight pairs (channel of a, channel of b).
__device__ inline void exact_value_unit(const std::byte* a, const std::byte* b, int u, std::uint32_t* pair) {
  const uint4 x = reinterpret_cast<const uint4*>(a)[u], y = reinterpret_cast<const uint4*>(b)[u];
  pair[0] = first_of(x.x, y.x), pair[1] = second_of(x.x, y.x), pair[2] = first_of(x.y, y.y), pair[3] = second_of(x.y, y.y);
  pair[4] = first_of(x.z, y.z), pair[5] = second_of(x.z, y.z), pair[6] = first_of(x.w, y.w), pair[7] = second_of(x.w, y.w);
}

/// The codes of unit u of a row, as halves, in the same pairs.
template <int Bits>
__device__ inline void coded_key_unit(const std::byte* row, int u, std::uint32_t* pair) {
  if constexpr (Bits == 2) {
    const std::uint32_t v = reinterpret_cast<const std::uint16_t*>(row)[u];
    unpack_16<2, 4>(cuda::prmt(v, 0, 0x4140u), pair);  // codes 0 to 3 below, 4 to 7 above
  } else if constexpr (Bits == 4) {
    unpack_16<4, 4>(reinterpret_cast<const std::uint32_t*>(row)[u], pair);
  } else {
    const uint2 v = reinterpret_cast<const uint2*>(row)[u];
    unpack_16<8, 2>(first_of(v.x, v.y), pair);
    unpack_16<8, 2>(second_of(v.x, v.y), pair + 2);
  }
}
template <int Bits>
__device__ inline void coded_value_unit(const std::byte* a, const std::byte* b, int u, std::uint32_t* pair) {
  if constexpr (Bits == 2) {
    const std::uint32_t x = reinterpret_cast<const std::uint16_t*>(a)[u], y = reinterpret_cast<const std::uint16_t*>(b)[u];
    unpack_16<2, 8>(x | y << 16, pair);
  } else if constexpr (Bits == 4) {
    const std::uint32_t x = reinterpret_cast<const std::uint32_t*>(a)[u], y = reinterpret_cast<const std::uint32_t*>(b)[u];
    unpack_16<4, 4>(first_of(x, y), pair);
    unpack_16<4, 4>(second_of(x, y), pair + 4);
  } else {
    const uint2 x = reinterpret_cast<const uint2*>(a)[u], y = reinterpret_cast<const uint2*>(b)[u];
    unpack_16<8, 2>(first_of(x.x, y.x), pair), unpack_16<8, 2>(second_of(x.x, y.x), pair + 2);
    unpack_16<8, 2>(first_of(x.y, y.y), pair + 4), unpack_16<8, 2>(second_of(x.y, y.y), pair + 6);
  }
}

/// The constant terms of two groups, from their scales and offsets: number = code * scale + base.
template <int Bits>
__device__ inline std::uint32_t base_pair(GroupForm form, std::uint32_t scale, std::uint32_t offset) {
  if (form == GroupForm::minimum) return offset;
  constexpr int half = (1 << (Bits - 1)) - 1;
  const float middle = form == GroupForm::symmetric ? -static_cast<float>(half) : -0.5f * static_cast<float>((1 << Bits) - 1);
  const std::uint32_t factor = has_offset(form) ? offset ^ 0x80008000u : cuda::half2_pack(middle, middle);
  return cuda::half2_mul(scale, factor);
}

/// Scales and constant terms of a unit's four pairs of key numbers. Slots of one group share them, so they are read
/// anew only where the group changes. Parameters are halves.
struct UnitScales {
  const std::byte* of = nullptr;
  std::uint32_t scale[4], base[4];
};
template <int Bits>
__device__ inline void read_scales(const GroupInt<Bits>& codec, const std::byte* params, int dim, int u, UnitScales& s) {
  if (s.of == params) return;
  s.of = params;
  std::uint32_t offset[4] = {};
  if (codec.axis == GroupAxis::channel) {  // one for each channel: a row of halves, then another one
    exact_key_unit(params, u, s.scale);
    if (has_offset(codec.form)) exact_key_unit(params + 2 * dim, u, offset);
  } else {
    const int group = static_cast<int>(codec.group_channels(dim)), j = u * unit / group;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s.scale[i] = both_halves(params, j);
      if (has_offset(codec.form)) offset[i] = both_halves(params, dim / group + j);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) s.base[i] = base_pair<Bits>(codec.form, s.scale[i], offset[i]);
}

/// Unit u of a row of keys.
template <class Codec>
__device__ inline void key_pairs(const Codec& codec, const RowAt& at, int dim, int u, UnitScales& scales, std::uint32_t (&pair)[4]) {
  if constexpr (!std::is_same_v<Codec, ExactRows>) {
    if (at.params != nullptr) {
      read_scales(codec, at.params, dim, u, scales);
      coded_key_unit<Codec::bits>(at.row, u, pair);
#pragma unroll
      for (int i = 0; i < 4; ++i) pair[i] = cuda::half2_fma(pair[i], scales.scale[i], scales.base[i]);
      return;
    }
  }
  exact_key_unit(at.row, u, pair);
}

/// Unit u of two rows of values. Where one of two slots is coded and the other not, each is taken by itself.
template <class Codec>
__device__ inline void value_pairs(const Codec& codec, const RowAt& a, const RowAt& b, int dim, int u, std::uint32_t (&pair)[unit]) {
  if constexpr (std::is_same_v<Codec, ExactRows>) {
    exact_value_unit(a.row, b.row, u, pair);
  } else {
    const auto coded = [&](const RowAt& x, const RowAt& y, std::uint32_t* out) {
      const int group = static_cast<int>(codec.group_channels(dim)), j = u * unit / group, offsets = dim / group + j;
      const std::uint32_t scale = first_of(both_halves(x.params, j), both_halves(y.params, j));
      std::uint32_t offset = 0;
      if (has_offset(codec.form)) offset = first_of(both_halves(x.params, offsets), both_halves(y.params, offsets));
      const std::uint32_t base = base_pair<Codec::bits>(codec.form, scale, offset);
      coded_value_unit<Codec::bits>(x.row, y.row, u, out);
#pragma unroll
      for (int i = 0; i < unit; ++i) out[i] = cuda::half2_fma(out[i], scale, base);
    };
    const bool first = a.params != nullptr, second = b.params != nullptr;
    if (first && second) return coded(a, b, pair);
    if (!first && !second) return exact_value_unit(a.row, b.row, u, pair);
    std::uint32_t codes[unit], numbers[unit];
    coded(first ? a : b, first ? a : b, codes);
    exact_value_unit(first ? b.row : a.row, first ? b.row : a.row, u, numbers);
#pragma unroll
    for (int i = 0; i < unit; ++i) pair[i] = first ? first_of(codes[i], numbers[i]) : first_of(numbers[i], codes[i]);
  }
}

}  // namespace kvcondense::prim::cuda_kernels
