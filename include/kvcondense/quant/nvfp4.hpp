#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/block_codes.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores numbers in four bits, in blocks of 16 with a small float as scale under one scale for all.
///
/// Idea     A scale with a mantissa fits its block closer than a power of two; a second level widens its range.
/// Source   NVFP4, the block-scaled format of NVIDIA's Blackwell: E2M1, E4M3 per 16, float32 per tensor.
/// Needs    keys and values only; second-level scales known in advance, amax of all / 2688 or 1.
/// Shapes   blocks of 16 channels of a token; a last block may be short.
/// Cost     4 bits per number and 8 per block: 4.5 bits for multiples of 16.
/// Numbers  block scale e4m3(amax / (6 * given)), codes from the stored scale, half to even. The rounded scale may
///          be 1/17 too small for amax, which then clips; a block below given * 2^-10 * 6 decodes to 0; one above
///          given * 2688 clips and is counted, as are NaN (coded as 0) and infinities (coded as amax).
/// Errors   invalid_argument for a scale outside 2^-60..2^60.
struct Nvfp4 {
  static constexpr Descriptor about{"nvfp4", Stage::quant, "NVIDIA Blackwell"};

  float key_scale = 1.0f;
  float value_scale = 1.0f;
  index_t residual_window = 0;  ///< newest slots that stay exact
  index_t sinks = 0;            ///< slots at the start that stay exact

  constexpr prim::BlockCodes key_codec() const { return codec(key_scale); }
  constexpr prim::BlockCodes value_codec() const { return codec(value_scale); }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  constexpr Status validate(const CacheShape& shape) const {
    return codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  static constexpr prim::BlockCodes codec(float given) {
    prim::BlockCodes c;
    c.element = prim::BlockElement::e2m1;
    c.scale = prim::BlockScale::e4m3;
    c.block = 16;
    c.factor = given;
    return c;
  }
};

}  // namespace kvcondense::quant
