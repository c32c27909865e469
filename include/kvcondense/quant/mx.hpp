#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/block_codes.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// What an element is.
enum class MxFormat : std::uint8_t {
  fp4,       ///< E2M1
  fp6_e2m3,
  fp6_e3m2,
  fp8_e4m3,
  fp8_e5m2,
  int8,
  same,      ///< values only: as keys
};

/// What becomes of a block whose largest number lies beyond the largest code.
enum class MxScaleRound : std::uint8_t {
  floor,  ///< it clips: the standard
  ceil,   ///< the scale doubles: nothing clips, the others are coarser
};

/// Stores numbers in the OCP microscaling formats: blocks of 32 with a power of two as scale.
///
/// Idea     A scale for few numbers lets very short floats do; a power of two needs one byte and no product.
/// Source   OCP Microscaling Formats (MX) specification 1.0.
/// Needs    keys and values only.
/// Shapes   blocks of 32 channels of a token; a last block may be short.
/// Cost     4, 6 or 8 bits per number, and 8 per block: 4.25, 6.25, 8.25 bits for multiples of 32.
/// Numbers  scale 2^(floor(log2 amax) - largest exponent of the format); numbers beyond the largest code (4/3 of
///          it for fp4, 8/7 for fp8_e4m3) clip, which is not counted; others err by half a step at most. Ties by
///          `rounding`. int8 is code / 64, -127 to 127. NaN is coded as 0, infinities as amax, both counted.
/// Errors   invalid_argument for half_up, or `same` for keys.
struct Mx {
  static constexpr Descriptor about{"mx", Stage::quant, "OCP MX 1.0"};

  MxFormat format = MxFormat::fp4;
  MxFormat value_format = MxFormat::same;
  MxScaleRound scale_round = MxScaleRound::floor;
  prim::Rounding rounding = prim::Rounding::half_even;
  index_t residual_window = 0;  ///< newest slots that stay exact
  index_t sinks = 0;            ///< slots at the start that stay exact

  constexpr prim::BlockCodes key_codec() const { return codec(format); }
  constexpr prim::BlockCodes value_codec() const {
    return codec(value_format == MxFormat::same ? format : value_format);
  }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  constexpr Status validate(const CacheShape& shape) const {
    const bool ok = format != MxFormat::same && codecs_fit(*this, shape);
    return ok ? Status::ok : Status::invalid_argument;
  }

 private:
  static constexpr prim::BlockElement element(MxFormat f) {
    switch (f) {
      case MxFormat::fp6_e2m3: return prim::BlockElement::e2m3;
      case MxFormat::fp6_e3m2: return prim::BlockElement::e3m2;
      case MxFormat::fp8_e4m3: return prim::BlockElement::e4m3;
      case MxFormat::fp8_e5m2: return prim::BlockElement::e5m2;
      case MxFormat::int8: return prim::BlockElement::int8;
      default: return prim::BlockElement::e2m1;
    }
  }
  constexpr prim::BlockCodes codec(MxFormat f) const {
    prim::BlockCodes c;
    c.element = element(f);
    c.scale = scale_round == MxScaleRound::ceil ? prim::BlockScale::e8m0_ceil : prim::BlockScale::e8m0;
    c.block = 32;
    c.rounding = rounding;
    return c;
  }
};

}  // namespace kvcondense::quant
