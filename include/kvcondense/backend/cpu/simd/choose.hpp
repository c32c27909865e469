#pragma once

#include <kvcondense/backend/cpu/simd/code_ops.hpp>
#include <kvcondense/backend/cpu/simd/coding_ops.hpp>
#include <kvcondense/backend/cpu/simd/number_ops.hpp>
#include <kvcondense/backend/cpu/simd/rank_ops.hpp>
#include <kvcondense/backend/cpu/simd/row_ops.hpp>
#include <kvcondense/backend/cpu/simd/target.hpp>

// Kernels are compiled with the program that includes them, or once: the library `kvcondense::any` has them, and says so
// to whom links it, who is spared seconds of compile time per file.
#if defined(KVCONDENSE_COMPILED_KERNELS)
#define KVCONDENSE_KERNELS
#else
#define KVCONDENSE_KERNELS inline
#endif

namespace kvcondense::prim::cpu {

/// The kernels of one instruction set; those of another one only where `can_run` says so.
KVCONDENSE_KERNELS const RowOps& row_ops(Isa isa);
KVCONDENSE_KERNELS const CodingOps& coding_ops(Isa isa);
KVCONDENSE_KERNELS const NumberOps& number_ops(Isa isa);
KVCONDENSE_KERNELS const RankOps& rank_ops(Isa isa);

/// Products of codes where the processor has instructions for them, else null: codes are then unpacked into floats.
KVCONDENSE_KERNELS const CodeOps* code_ops();
/// The same for multipliers of one byte, which are the same integers everywhere; AVX-512 without such instructions has those of AVX2, NEON without them has its own.
KVCONDENSE_KERNELS const CodeOps& byte_code_ops(Isa isa);

/// The kernels that this processor runs quickest.
inline const RowOps& row_ops() {
  static const RowOps& best = row_ops(best_isa());
  return best;
}
inline const CodingOps& coding_ops() {
  static const CodingOps& best = coding_ops(best_isa());
  return best;
}
inline const CodeOps& byte_code_ops() {
  static const CodeOps& best = byte_code_ops(best_isa());
  return best;
}
inline const NumberOps& number_ops() {
  static const NumberOps& best = number_ops(best_isa());
  return best;
}
inline const RankOps& rank_ops() {
  static const RankOps& best = rank_ops(best_isa());
  return best;
}

}  // namespace kvcondense::prim::cpu

#if !defined(KVCONDENSE_COMPILED_KERNELS)
#include <kvcondense/backend/cpu/simd/kernels.hpp>
#endif
