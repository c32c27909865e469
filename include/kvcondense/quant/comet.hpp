#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores keys per channel and values per token in 4 bits: a COMET-like cache.
///
/// Idea     Four bits and large groups: keys share a scale along tokens, where their channels differ most, values
///          within a token.
/// Source   COMET: Towards Practical W4A4KV4 LLMs Serving, arXiv:2410.12168.
/// Needs    keys and values only; keys as they are attended, with RoPE in them.
/// Shapes   keys: groups of `group_size` tokens of a channel; values: of `value_group` channels of a token (0: its
///          whole row). GroupInt in minimum form.
/// Cost     4 + 32 / group_size bits per number (4.25 for 128), plus the exact window: up to group_size - 1 keys
///          more than `keep_window`.
/// Numbers  half to even, fp16 parameters; error at most half a step of the group. NaN is coded as 0, infinities
///          as the end of their group's range, both counted.
/// Errors   invalid_argument when a group divides no page or row, for negative windows or sinks.
/// Differs  the paper tells of 4-bit keys and values, but neither axis, group, nor form: these are ours.
struct Comet {
  static constexpr Descriptor about{"comet", Stage::quant, "arXiv:2410.12168"};

  index_t group_size = 128;
  index_t value_group = 0;
  index_t keep_window = 0;  ///< newest slots that stay exact
  index_t sinks = 0;        ///< slots at the start that stay exact

  constexpr prim::GroupInt<4> key_codec() const {
    return prim::GroupInt<4>{.axis = prim::GroupAxis::channel, .group_size = group_size}.for_scores();
  }
  constexpr prim::GroupInt<4> value_codec() const {
    return prim::GroupInt<4>{.axis = prim::GroupAxis::token, .group_size = value_group}.for_sums();
  }
  constexpr Flush key_flush() const { return block_flush_keep(group_size, keep_window); }
  constexpr Flush value_flush() const { return fifo_flush(keep_window); }

  constexpr Status validate(const CacheShape& shape) const {
    const bool ok = group_size > 0 && codecs_fit(*this, shape);
    return ok ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::quant
