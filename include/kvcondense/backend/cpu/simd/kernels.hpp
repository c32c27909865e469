#pragma once

#if defined(__CUDACC__)  // nvcc hands the host compiler's pragmas on, and warns of each
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675
#endif
#include <kvcondense/backend/cpu/simd/avx2.hpp>
#include <kvcondense/backend/cpu/simd/avx512.hpp>
#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/backend/cpu/simd/neon.hpp>
#include <kvcondense/backend/cpu/simd/neon_dot.hpp>
#include <kvcondense/backend/cpu/simd/portable.hpp>
#include <kvcondense/backend/cpu/simd/rank_kernels.hpp>
#include <kvcondense/backend/cpu/simd/vnni.hpp>

#if defined(__CUDACC__)
#pragma nv_diagnostic pop
#endif

// What choose.hpp declares.
namespace kvcondense::prim::cpu {

KVCONDENSE_KERNELS const RowOps& row_ops([[maybe_unused]] Isa isa) {
#if KVCONDENSE_X86_TARGETS
  if (isa == Isa::avx512) return avx512::row_ops;
  if (isa == Isa::avx2) return avx2::row_ops;
#elif KVCONDENSE_NEON_TARGETS
  if (isa == Isa::neon) return neon::row_ops;
#endif
  return portable::row_ops;
}

KVCONDENSE_KERNELS const CodingOps& coding_ops([[maybe_unused]] Isa isa) {
#if KVCONDENSE_X86_TARGETS
  if (isa == Isa::avx512) return avx512::coding_ops;
  if (isa == Isa::avx2) return avx2::coding_ops;
#elif KVCONDENSE_NEON_TARGETS
  if (isa == Isa::neon) return neon::coding_ops;
#endif
  return portable::coding_ops;
}

KVCONDENSE_KERNELS const NumberOps& number_ops([[maybe_unused]] Isa isa) {
#if KVCONDENSE_X86_TARGETS
  if (isa == Isa::avx512) return avx512::number_ops;
  if (isa == Isa::avx2) return avx2::number_ops;
#elif KVCONDENSE_NEON_TARGETS
  if (isa == Isa::neon) return neon::number_ops;
#endif
  return portable::number_ops;
}

KVCONDENSE_KERNELS const RankOps& rank_ops([[maybe_unused]] Isa isa) {
#if KVCONDENSE_X86_TARGETS
  if (isa == Isa::avx512) return avx512::rank_ops;
#endif
  return portable::rank_ops;
}

KVCONDENSE_KERNELS const CodeOps& byte_code_ops([[maybe_unused]] Isa isa) {
#if KVCONDENSE_X86_TARGETS
  if (isa == Isa::avx512 && code_ops() != nullptr) return vnni::code_ops;
  if (isa != Isa::portable) return avx2::code_ops;
#elif KVCONDENSE_NEON_TARGETS
  if (isa == Isa::neon) return has_dot_products() ? neon_dot::code_ops : neon::code_ops;
#endif
  return portable::code_ops;
}

KVCONDENSE_KERNELS const CodeOps* code_ops() {
#if KVCONDENSE_X86_TARGETS
  static const CodeOps* best = can_run(Isa::avx512) && __builtin_cpu_supports("avx512vnni") ? &vnni::code_ops : nullptr;
  return best;
#elif KVCONDENSE_NEON_TARGETS
  static const CodeOps* best = has_dot_products() ? &neon_dot::code_ops : nullptr;
  return best;
#else
  return nullptr;
#endif
}

}  // namespace kvcondense::prim::cpu
