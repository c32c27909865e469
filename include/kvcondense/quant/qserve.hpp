#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores keys and values in 4 or 8 bits, with a scale and a zero per token and head, as soon as they arrive.
///
/// Idea     A token's numbers in one head share a scale: nothing waits for other tokens, and a kernel reads
///          one pair of parameters per token.
/// Source   Lin et al., QServe, arXiv:2405.04532 (its KV4 and KV8).
/// Needs    keys and values only.
/// Shapes   a group is a token's row in one head: GroupInt on the token axis, two codes per byte for 4 bits.
/// Cost     Bits + 32 / head_dim per number (4.25 for 4 bits, 128 channels); 16 / head_dim for `symmetric`.
/// Numbers  float zero, fp16 parameters, half to even: code = x / scale + zero. The zero is rounded to fp16: a row
///          whose offset is n times its range errs by up to n / 2^12 of the range more. `minimum` does not.
///          NaN is coded as 0, infinities as the end of their row's range, both counted.
/// Errors   compile error for other widths; invalid_argument for negative windows or sinks.
/// Differs  codes are limited to their width before they are packed (the reference code wraps around), constant
///          rows are exact (it divides by zero). Its smoothing of key channels is not done here.
template <int Bits>
struct QServe {
  static_assert(Bits == 4 || Bits == 8, "kvcondense: QServe stores numbers in 4 or 8 bits.");
  static constexpr Descriptor about{"qserve", Stage::quant, "arXiv:2405.04532"};

  prim::GroupForm form = prim::GroupForm::float_zero;
  index_t residual_window = 0;  ///< newest slots that stay exact
  index_t sinks = 0;            ///< slots at the start that stay exact

  constexpr prim::GroupInt<Bits> key_codec() const { return codec().for_scores(); }
  constexpr prim::GroupInt<Bits> value_codec() const { return codec().for_sums(); }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  constexpr Status validate(const CacheShape& shape) const {
    return codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr prim::GroupInt<Bits> codec() const { return {.axis = prim::GroupAxis::token, .group_size = 0, .form = form}; }
};

}  // namespace kvcondense::quant
