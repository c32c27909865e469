#pragma once

#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/group_quant.hpp>

namespace kvcondense::prim::cpu {

/// The inner loops of group quantization for one instruction set; `coding_ops.inl` is their text.
///
/// Numbers  the same bits as `GroupRange::include`, `fit_group` and `code_of`, whatever the instruction set.
struct CodingOps {
  /// Widens the ranges lo[c], hi[c] by row x; returns how many numbers need repair.
  index_t (*widen_ranges)(const float* x, index_t n, float* lo, float* hi);

  /// Parameters of n groups with these ranges; returns how many had one too large for its type. `offset` may be `lo`.
  index_t (*fit_groups)(GroupForm form, int bits, ParamType type, const float* lo, const float* hi, index_t n, float* scale,
                        float* offset, float* inverse);

  /// Codes one row whose number c has offset[c] and inverse[c].
  void (*code_row)(GroupForm form, Rounding rule, int bits, const float* x, const float* offset, const float* inverse, index_t n,
                   std::uint8_t* codes);

  /// True when all |x[i]| <= most; false for NaN.
  bool (*within)(const float* x, index_t n, float most);
};

}  // namespace kvcondense::prim::cpu
