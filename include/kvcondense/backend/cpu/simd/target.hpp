#pragma once

// Where kernels for other instruction sets than the program's own can be compiled: there the best one is chosen when
// the program runs. KVCONDENSE_PORTABLE=1 leaves the portable kernels alone.
#if !defined(KVCONDENSE_PORTABLE)
#define KVCONDENSE_PORTABLE 0
#endif
#if !KVCONDENSE_PORTABLE && defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDACC__)
#define KVCONDENSE_X86_TARGETS 1
#else
#define KVCONDENSE_X86_TARGETS 0
#endif
#if !KVCONDENSE_PORTABLE && defined(__aarch64__) && defined(__GNUC__) && !defined(__CUDACC__)
#define KVCONDENSE_NEON_TARGETS 1
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#else
#define KVCONDENSE_NEON_TARGETS 0
#endif

namespace kvcondense::prim::cpu {

/// Instruction sets with kernels of their own, the quickest last.
enum class Isa { portable, neon, avx2, avx512 };

inline constexpr Isa all_isas[] = {Isa::portable, Isa::neon, Isa::avx2, Isa::avx512};

/// Whether this processor, and this program, can run them.
inline bool can_run(Isa isa) {
#if KVCONDENSE_NEON_TARGETS
  if (isa == Isa::neon) return true;
#endif
#if KVCONDENSE_X86_TARGETS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::portable;
}

#if KVCONDENSE_NEON_TARGETS
/// Whether it has products of bytes, too.
inline bool has_dot_products() {
#if defined(__ARM_FEATURE_DOTPROD)
  return true;
#elif defined(__linux__)
  return (getauxval(AT_HWCAP) & (1ul << 20)) != 0;  // HWCAP_ASIMDDP, which older headers of the system lack
#else
  return false;
#endif
}
#endif

inline Isa best_isa() {
  Isa best = Isa::portable;
  for (const Isa isa : all_isas)
    if (can_run(isa)) best = isa;
  return best;
}

}  // namespace kvcondense::prim::cpu
