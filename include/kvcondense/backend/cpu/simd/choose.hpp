#pragma once

#include <kvcondense/backend/cpu/simd/avx2.hpp>
#include <kvcondense/backend/cpu/simd/avx512.hpp>
#include <kvcondense/backend/cpu/simd/portable.hpp>
#include <kvcondense/backend/cpu/simd/target.hpp>
#include <kvcondense/backend/cpu/simd/vnni.hpp>

namespace kvcondense::prim::cpu {

/// The kernels of one instruction set; those of another one only where `can_run` says so.
inline const RowOps& row_ops(Isa isa) {
#if KVCONDENSE_X86_TARGETS
  if (isa == Isa::avx512) return avx512::row_ops;
  if (isa == Isa::avx2) return avx2::row_ops;
#endif
  return portable::row_ops;
}

inline const CodingOps& coding_ops(Isa isa) {
#if KVCONDENSE_X86_TARGETS
  if (isa == Isa::avx512) return avx512::coding_ops;
  if (isa == Isa::avx2) return avx2::coding_ops;
#endif
  return portable::coding_ops;
}

/// The kernels that this processor runs quickest.
inline const RowOps& row_ops() {
  static const RowOps& best = row_ops(best_isa());
  return best;
}

inline const CodingOps& coding_ops() {
  static const CodingOps& best = coding_ops(best_isa());
  return best;
}

/// Products of codes where the processor has instructions for them, else null: codes are then unpacked into floats.
inline const CodeOps* code_ops() {
#if KVCONDENSE_X86_TARGETS
  static const CodeOps* best = can_run(Isa::avx512) && __builtin_cpu_supports("avx512vnni") ? &vnni::code_ops : nullptr;
  return best;
#else
  return nullptr;
#endif
}

}  // namespace kvcondense::prim::cpu
