#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/boosted_int.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores keys per channel in 2 bits, the strongest channels of each page in 4, and values per token in 2.
///
/// Idea     A few key channels make most of the error of a logit. Which ones changes slowly: each page of tokens
///          names its own, and keeps their two high bits in a plane of their own.
/// Source   Kitty, arXiv:2511.18643.
/// Needs    keys and values only; keys as they are attended, with RoPE in them.
/// Shapes   keys: BoostedInt<2, 2>, groups of `page` tokens of a channel; values: GroupInt<2>, a token's row.
/// Cost     keys 2 + 2 * boost + 40 / page bits per number (2.5625 for 12.5%, 2.8125 for 25%, pages of 128), values
///          2 + 32 / value_dim; and what is exact: the sinks, up to `page` - 1 keys, and of values up to `page` - 1
///          more than `buffer`.
/// Numbers  minimum form, fp16 parameters, halves up; error at most half a step. Channels are ranked by their mean
///          magnitude in the page, the first of equals first. NaN is coded as 0, infinities as the end of their
///          group's range, both counted.
/// Errors   invalid_argument when `page` divides no page of a cache, boost lies outside 0..1, negative windows.
/// Differs  codes are packed by token, not by channel. Constant groups have scale 0, where the reference code takes
///          1e-6. `keep_window` is an addition.
struct Kitty {
  static constexpr Descriptor about{"kitty", Stage::quant, "arXiv:2511.18643"};

  index_t page = 128;       ///< keys of a channel that share a scale
  float boost = 0.125f;     ///< part of the channels that has 4 bits
  index_t buffer = 128;     ///< newest values that stay exact
  index_t keep_window = 0;  ///< newest keys that never enter a page
  index_t sinks = 32;       ///< slots at the start that stay exact

  constexpr prim::BoostedInt<2, 2> key_codec() const { return {.group_size = page, .boost = boost}; }
  constexpr prim::GroupInt<2> value_codec() const {
    return prim::GroupInt<2>{.axis = prim::GroupAxis::token, .group_size = 0, .rounding = prim::Rounding::half_up}.for_sums();
  }
  constexpr Flush key_flush() const { return block_flush_keep(page, keep_window); }
  constexpr Flush value_flush() const { return block_flush_keep(page, buffer); }

  constexpr Status validate(const CacheShape& shape) const {
    const bool ok = page > 0 && codecs_fit(*this, shape);
    return ok ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::quant
