#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/block_codes.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores numbers as short signed mantissas that share an exponent per block of channels.
///
/// Idea     One exponent byte serves a whole block. Sorted by the norms of the key projection, large channels
///          share blocks and leave the others fine steps: `order_channels` folds that order into the weights.
/// Source   Accurate Block Quantization in LLMs with Outliers, arXiv:2403.20137 (BFP12 keys, K-sort).
/// Needs    keys and values only; for K-sort, projections that `order_channels` has permuted.
/// Shapes   blocks of `block` consecutive channels of a token, a power of two from 8 to 256 (0: the whole row);
///          a last block may be short. BlockCodes of signed integers with an E8M0 scale.
/// Cost     bits + 8 / block per number: 4.25, 4.125, 4.0625 for 4 bits and blocks of 32, 64, 128.
/// Numbers  step 2^(floor(log2 amax) - (bits - 2)), codes up to +-(2^(bits - 1) - 1): a number between the last code
///          and amax clips, which is not counted; others err by half a step at most. Ties by `rounding`. NaN
///          is coded as 0, infinities as amax, both counted.
/// Errors   invalid_argument for bits outside 2..8, other blocks, half_up.
/// Differs  the paper says nothing of rounding, and quantizes queries too (to 8 bits), which stay exact here.
struct Bfp {
  static constexpr Descriptor about{"bfp", Stage::quant, "arXiv:2403.20137"};

  index_t bits = 4;        ///< of a key's mantissa, with its sign
  index_t value_bits = 8;  ///< of a value's
  index_t block = 32;
  prim::Rounding rounding = prim::Rounding::half_even;
  index_t residual_window = 0;  ///< newest slots that stay exact
  index_t sinks = 0;            ///< slots at the start that stay exact

  constexpr prim::BlockCodes key_codec() const { return codec(bits); }
  constexpr prim::BlockCodes value_codec() const { return codec(value_bits); }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  constexpr Status validate(const CacheShape& shape) const {
    const bool ok = usable(bits) && usable(value_bits) && codecs_fit(*this, shape);
    return ok ? Status::ok : Status::invalid_argument;
  }

 private:
  static constexpr bool usable(index_t b) { return b >= 2 && b <= 8; }
  constexpr prim::BlockCodes codec(index_t b) const {
    prim::BlockCodes c;
    c.element = prim::integer_element(usable(b) ? static_cast<int>(b) : 8);
    c.scale = prim::BlockScale::e8m0;
    c.block = block;
    c.rounding = rounding;
    return c;
  }
};

}  // namespace kvcondense::quant
