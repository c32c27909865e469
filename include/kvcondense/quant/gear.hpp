#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/corrected.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// What shares a scale below the corrections.
enum class GearLayout : std::uint8_t {
  kivi,  ///< keys: `group_size` tokens of a channel; values: `group_size` channels of a token
  kcvt,  ///< keys: the tokens of a chunk, per channel; values: all channels of a token and head
};

/// Stores keys and values in few bits, and beside them the outliers and a low-rank part of the error.
///
/// Idea     few numbers make a group's range wide, and what rounding leaves of the others has directions in common: both
///          are cheap to keep apart, and then few bits are nearly as good as all.
/// Source   GEAR, arXiv:2403.05527; without outliers (sparse = 0) its GEAR-L.
/// Needs    keys and values only; keys as they are attended, with RoPE in them.
/// Shapes   every `chunk` tokens of a head are coded together. Outliers: round(sparse / 2 * n) of each end of a key channel
///          (n = chunk) and of a value row (n = value size). One low-rank part of `rank` per chunk, keys and values.
/// Cost     Bits + 32 / group, 16 * rank * (chunk + head_dim) / (chunk * head_dim) and 24 bits per outlier: 2.5 + 0.75 +
///          0.75 bits per number of a key as set here with heads of 128; the exact window holds up to `chunk` - 1 tokens
///          beside `keep_window`. Coding a chunk reads it 2 * loops * rank times; attention adds head_dim + slots products
///          per rank and one per outlier, for every query row.
/// Numbers  minimum form, half to even, scales, factors and outliers in fp16; power iteration in float32 from a fixed
///          start. Outliers are replaced by their vector's mean before ranges are found, and come back with the error of one
///          fp16 number. Of equal numbers the first are outliers.
/// Differs  one rank for all chunks, which all have one size, where the paper takes 4 for a prompt and 2 for each 64
///          tokens after it. Numbers of levels are 2^Bits - 1, outliers are counted by the vector's own length, a group
///          of a value is one head's. What is stored of an outlier is its distance from code and low-rank part
///          together; without that the low-rank part would move it.
/// Errors   invalid_argument when group_size or chunk does not divide its row, block or page, unless 0 <= sparse <= 1,
///          1 <= loops <= 64, 0 <= rank <= 8, rank <= chunk, chunk * head_dim <= 16384, and windows and sinks are not negative.
template <int Bits>
struct Gear {
  static constexpr Descriptor about{"gear", Stage::quant, "arXiv:2403.05527"};

  index_t group_size = 64;  ///< of layout kivi
  index_t chunk = 64;
  index_t rank = 2;
  index_t loops = 3;  ///< of power iteration
  double sparse = 0.02;
  GearLayout layout = GearLayout::kivi;
  index_t sinks = 0;        ///< slots at the start that stay exact
  index_t keep_window = 0;  ///< newest slots that never enter a chunk

  constexpr auto key_codec() const {
    return codec({.axis = prim::GroupAxis::channel, .group_size = layout == GearLayout::kivi ? group_size : chunk});
  }
  constexpr auto value_codec() const {
    return codec({.axis = prim::GroupAxis::token, .group_size = layout == GearLayout::kivi ? group_size : 0});
  }
  constexpr Flush key_flush() const { return block_flush_keep(chunk, keep_window); }
  constexpr Flush value_flush() const { return block_flush_keep(chunk, keep_window); }

  constexpr Status validate(const CacheShape& shape) const {
    const bool groups = layout == GearLayout::kcvt || group_size > 0;
    return groups && chunk > 0 && codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr prim::Corrected<prim::GroupInt<Bits>> codec(const prim::GroupInt<Bits>& codes) const {
    return {codes, codes.axis, chunk, sparse, rank, loops};
  }
};

}  // namespace kvcondense::quant
