#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/block_codes.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Exponent and mantissa bits.
enum class Fp8Format : std::uint8_t { e4m3, e5m2 };

/// Which numbers share a scale.
enum class Fp8Scale : std::uint8_t {
  tensor,  ///< all of them: `key_scale`, `value_scale`, given in advance
  token,   ///< those of a token in a head, from their largest
  block,   ///< `block` consecutive ones of those
};

/// Stores numbers as floats of eight bits.
///
/// Idea     A float keeps its relative error over a wide range, so one scale, or none, does for many numbers.
/// Source   OCP 8-bit floating point specification 1.0; the KV option of serving engines.
/// Needs    keys and values only; for `tensor` scales that suit the model (1 for most).
/// Shapes   a scale for all, per token and head, or per `block` channels of it (a last block may be short).
/// Cost     8 bits per number, and 32 per token or block for its scale; nothing for `tensor`.
/// Numbers  half to even, saturating at 448 (e4m3) or 57344 (e5m2) times the scale; scale max(amax, 1e-6) / that,
///          `power_of_two`: rounded up to one. Relative error at most 2^-4 (e4m3), 2^-3 (e5m2) of normal numbers.
///          NaN is coded as 0, infinities as the largest; both counted, as are numbers a tensor's scale cannot reach.
/// Errors   invalid_argument for a block that is no power of two from 8 to 256, a scale outside 2^-60..2^60.
struct Fp8 {
  static constexpr Descriptor about{"fp8", Stage::quant, "OCP OFP8 1.0"};

  Fp8Format format = Fp8Format::e4m3;
  Fp8Scale scale = Fp8Scale::token;
  index_t block = 128;
  bool power_of_two = false;
  float key_scale = 1.0f;
  float value_scale = 1.0f;
  index_t residual_window = 0;  ///< newest slots that stay exact
  index_t sinks = 0;            ///< slots at the start that stay exact

  constexpr prim::BlockCodes key_codec() const { return codec(key_scale); }
  constexpr prim::BlockCodes value_codec() const { return codec(value_scale); }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  constexpr Status validate(const CacheShape& shape) const {
    const bool ok = (scale != Fp8Scale::block || block > 0) && codecs_fit(*this, shape);
    return ok ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr prim::BlockCodes codec(float given) const {
    prim::BlockCodes c;
    c.element = format == Fp8Format::e4m3 ? prim::BlockElement::e4m3 : prim::BlockElement::e5m2;
    c.scale = scale == Fp8Scale::tensor ? prim::BlockScale::fixed
              : power_of_two            ? prim::BlockScale::f32_power
                                        : prim::BlockScale::f32;
    c.block = scale == Fp8Scale::block ? block : 0;
    c.factor = scale == Fp8Scale::tensor ? given : 1.0f;
    return c;
  }
};

}  // namespace kvcondense::quant
