#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores keys per channel and values per token, in few bits, and the newest tokens exactly.
///
/// Idea     A few key channels are always large: numbers of one channel share a scale along tokens.
///          Values have no such channels: numbers of one token share a scale.
/// Source   Liu et al., KIVI, arXiv:2402.02750, section 3.2.
/// Needs    keys and values only; keys as they are attended, with RoPE in them.
/// Shapes   keys: groups of `group_size` tokens of a channel; values: of `group_size` channels of a token.
/// Cost     Bits + 32 / group_size per number (3.0 for 2 bits, groups of 32), plus the exact window: up to
///          `residual_window` - 1 keys, coded in whole blocks, and `residual_window` values, coded one by one.
/// Numbers  minimum form, half to even, parameters in fp16; error at most half a step of the group. On the CPU `math=int8` rounds queries
///          and weights to a byte where they meet codes in lanes: of normal rows outputs are within 3e-2 of what the codes
///          stand for (6e-2 where logits spread by 6), in place of 4e-4.
/// Errors   invalid_argument when group_size does not divide the window, the value size or a page.
/// Differs  codes are computed from the stored parameters, constant groups are exact (the reference code
///          divides by zero), the packed order is by token; `sinks` and `keep_window` are additions.
template <int Bits>
struct Kivi {
  static constexpr Descriptor about{"kivi", Stage::quant, "arXiv:2402.02750"};

  index_t group_size = 32;
  index_t residual_window = 128;
  index_t sinks = 0;        ///< slots at the start that stay exact
  index_t keep_window = 0;  ///< newest keys that never enter a block: no empty window after a flush
  prim::CodeMath math = prim::CodeMath::int16;  ///< what codes are multiplied with, on the CPU

  constexpr prim::GroupInt<Bits> key_codec() const {
    return prim::GroupInt<Bits>{.axis = prim::GroupAxis::channel, .group_size = group_size, .math = math}.for_scores();
  }
  constexpr prim::GroupInt<Bits> value_codec() const {
    return prim::GroupInt<Bits>{.axis = prim::GroupAxis::token, .group_size = group_size, .math = math}.for_sums();
  }
  constexpr Flush key_flush() const { return block_flush_keep(residual_window, keep_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  constexpr Status validate(const CacheShape& shape) const {
    const bool ok = group_size > 0 && residual_window > 0 && codecs_fit(*this, shape);
    return ok ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::quant
