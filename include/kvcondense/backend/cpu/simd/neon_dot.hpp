#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/simd/neon.hpp>

#if KVCONDENSE_NEON_TARGETS

// As in avx2.hpp: for processors with products of bytes, called where there are. Nothing here demands that a function of the program around
// it is inlined, which may be compiled for things that these lines do not name.
#if !defined(__ARM_FEATURE_DOTPROD)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#endif

namespace kvcondense::prim::cpu::neon_dot {

inline constexpr const char* name = "neon dotprod";

/// sum + four products of signed bytes, in every lane. Compilers know the intrinsic only in programs that are compiled for it throughout.
[[gnu::always_inline]] inline int32x4_t add_products(int32x4_t sum, int8x16_t codes, int8x16_t by) {
  asm("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(codes), "w"(by));
  return sum;
}

template <int Bits, int R>
void code_pair(const CodeRun& run, index_t at, int field, const FoldedRows& folded, int plane, index_t r, std::int32_t (&sum)[R][32]) {
  const int8x16_t down[2] = {vdupq_n_s8(static_cast<std::int8_t>(-field * Bits)), vdupq_n_s8(static_cast<std::int8_t>(-(field + 1) * Bits))};
  int32x4_t total[R][8];
#pragma GCC unroll 2
  for (int k = 0; k < R; ++k)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) total[k][j] = vdupq_n_s32(0);
  const std::byte* w = run.first + at;
  RunAhead<Bits> ahead(run, at + field > 0 ? 1 : 0, 1);
  for (index_t s = 0; s < run.steps; ++s, w += run.step, ahead.at += ahead.step) {
    __builtin_prefetch(ahead.at, 0, 2);
    if constexpr (Bits == 8) __builtin_prefetch(ahead.at + 64, 0, 2);
    int8x16_t x[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) x[j] = neon::signed_codes<Bits>(w + (Bits == 8 && j >= 4 ? run.second : 0) + j % 4 * 16, down[j / 4]);
#pragma GCC unroll 2
    for (int k = 0; k < R; ++k) {
      std::int32_t four;
      std::memcpy(&four, &folded.plane[r + k][plane][4 * s], sizeof four);
      const int8x16_t by = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) total[k][j] = add_products(total[k][j], x[j], by);
    }
  }
  for (int k = 0; k < R; ++k) {
    const int32x4_t more = vdupq_n_s32(Bits == 8 ? neon::lacking(folded.plane[r + k][plane], run.steps) : 0);
    for (int j = 0; j < 8; ++j) vst1q_s32(sum[k] + 4 * j, vaddq_s32(total[k][j], more));
  }
}

#include <kvcondense/backend/cpu/simd/code_ops.inl>

}  // namespace kvcondense::prim::cpu::neon_dot

#if !defined(__ARM_FEATURE_DOTPROD)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#endif
