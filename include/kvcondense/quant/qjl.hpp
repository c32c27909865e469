#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/sign_sketch.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores of a key only the signs of its products with random directions, and its length; values per token in 2 bits.
///
/// Idea     signs of random products tell the angle between two vectors: with the key's length they estimate any query's
///          product with it, without bias and without a scale or a zero per group.
/// Source   QJL, arXiv:2406.03482.
/// Needs    keys and values only; keys as they are attended, with RoPE in them.
/// Shapes   keys: SketchRows, groups of `group_size` tokens with `channels` strong channels sketched apart; the first
///          `first_layers` layers have more signs for the others and fewer for the strong. Values: GroupInt<2>, `value_group`.
/// Cost     per number of a key (bits + strong_bits + 32) / head_dim + 8 * channels / (group_size * head_dim) bits: 4.27
///          as set here with heads of 128, 5.27 in the first layers; values 2 + 32 / value_group. Up to `buffer` exact
///          tokens. bits + strong_bits additions a score; a query is projected once per group of slots that it reads.
/// Numbers  the estimate's standard deviation is about sqrt(pi / 2 / bits) |q| |k|: large for keys that a query does not
///          look at. Lengths in fp16, of each part by itself, so that none is the root of a negative number.
/// Differs  directions come from signs and Hadamard transforms, not from QR of normal numbers; any head size works.
/// Errors   invalid_argument unless signs are multiples of 8 up to 1024 (of the strong ones above 0 where there are any),
///          channels are fewer than head_dim and of groups of two tokens or more, groups divide `buffer` and pages, and windows
///          are not negative.
struct Qjl {
  static constexpr Descriptor about{"qjl", Stage::quant, "arXiv:2406.03482"};

  index_t bits = 256;         ///< signs of a key
  index_t strong_bits = 256;  ///< signs of its strong channels
  index_t first_layers = 15;
  index_t first_bits = 512;   ///< the same in the first layers
  index_t first_strong_bits = 128;
  index_t channels = 8;       ///< strong ones, of a group
  index_t group_size = 32;    ///< tokens that agree on their strong channels
  index_t value_group = 32;   ///< numbers of a value that share a scale
  index_t buffer = 128;       ///< newest values that stay exact; keys leave in blocks of it
  std::uint64_t seed = 1;
  index_t sinks = 0;          ///< slots at the start that stay exact

  constexpr prim::SketchRows key_codec(const CacheShape&, HeadIndex at) const {
    const bool first = at.layer < first_layers;
    return {{first ? first_bits : bits, seed}, {first ? first_strong_bits : strong_bits, ~seed}, channels, group_size};
  }
  constexpr prim::GroupInt<2> value_codec() const { return {.axis = prim::GroupAxis::token, .group_size = value_group}; }
  constexpr Flush key_flush() const { return block_flush(buffer); }
  constexpr Flush value_flush() const { return fifo_flush(buffer); }

  Status validate(const CacheShape& shape) const {
    const bool grouped = channels == 0 || group_size > 1;
    return buffer > 0 && grouped && codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::quant
