#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/block_codes.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// The blocks of ggml that can hold keys and values.
enum class GgmlFormat : std::uint8_t {
  q4_0, q4_1, q5_0, q5_1, q8_0, mxfp4, nvfp4,
  same,  ///< values only: as keys
};

/// Stores numbers in ggml's block formats, byte for byte.
///
/// Idea     What one engine's files and kernels hold can be taken over and handed back without coding anew.
/// Source   ggml, ggml-quants.c: the reference quantizers of q4_0 to q8_0, mxfp4 and nvfp4.
/// Needs    keys and values only.
/// Shapes   a row is head_dim / 32 blocks of 18, 20, 22, 24, 34 or 17 bytes; nvfp4: head_dim / 64 of 36.
/// Cost     4.5, 5, 5.5, 6, 8.5, 4.25 and 4.5 bits per number.
/// Numbers  codes from the float32 scale, as ggml has it, and decoded with the stored fp16 one: half a step and
///          what that rounds. q4_0 and q5_0 map the largest number to the lowest code; the opposite end may clip
///          by a step. NaN is coded as 0, infinities as the end of their block's range, a scale beyond fp16 as
///          65504; all counted.
/// Errors   invalid_argument when a block does not divide head_dim or value_dim, or for `same` as keys.
struct Ggml {
  static constexpr Descriptor about{"ggml", Stage::quant, "ggml-quants.c"};

  GgmlFormat format = GgmlFormat::q8_0;
  GgmlFormat value_format = GgmlFormat::same;
  index_t residual_window = 0;  ///< newest slots that stay exact
  index_t sinks = 0;            ///< slots at the start that stay exact

  constexpr prim::BlockCodes key_codec() const { return codec(format); }
  constexpr prim::BlockCodes value_codec() const {
    return codec(value_format == GgmlFormat::same ? format : value_format);
  }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  constexpr Status validate(const CacheShape& shape) const {
    const bool ok = format != GgmlFormat::same && codecs_fit(*this, shape);
    return ok ? Status::ok : Status::invalid_argument;
  }

 private:
  static constexpr prim::BlockCodes codec(GgmlFormat f) {
    prim::BlockCodes c;
    c.element = prim::BlockElement::ggml;
    c.ggml = static_cast<prim::GgmlType>(f == GgmlFormat::same ? GgmlFormat::q8_0 : f);
    return c;
  }
};

}  // namespace kvcondense::quant
