#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/polar_pairs.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores the two channels of each rotation pair of a key as a length and an angle, and values exactly.
///
/// Idea     RoPE turns pairs: their lengths are smooth along tokens where their components are not, and the product
///          of a query with the few directions that codes stand for is a small table.
/// Source   Wu et al., PolarQuant, arXiv:2502.00527.
/// Needs    keys and values only; keys as they are attended, with RoPE in them; an even head size.
/// Shapes   PolarPairs: groups of `group_size` tokens of a pair.
/// Cost     (RhoBits + ThetaBits) / 2 + 32 / group_size per number of a key (4.25 for 4 + 4 bits, groups of 128), and up to
///          `group_size` - 1 exact keys; values as the cache stores exact ones.
/// Numbers  2^bits equal bins between least and largest, read at their middle; fp16 parameters. A component errs
///          by half a bin of the length and length times half a bin of the angle at most, besides what fp16 leaves of
///          an angle (2^-9 at 2 pi). NaN is coded as 0, a pair with an infinity as the ends of its group, counted.
/// Errors   invalid_argument for odd heads, a group that divides no page, negative windows or sinks.
/// Differs  the point within a bin is ours (the reference kernel is not public), as are groups of one angle (the
///          reference code divides by zero) and `centered`: angles on both sides of 0 else take a whole circle.
template <int RhoBits, int ThetaBits>
struct Polar {
  static constexpr Descriptor about{"polar", Stage::quant, "arXiv:2502.00527"};

  index_t group_size = 128;
  prim::RopePairing pairing = prim::RopePairing::half_split;
  bool centered = false;    ///< the circle is cut opposite to a group's mean direction
  index_t keep_window = 0;  ///< newest keys that never enter a group
  index_t sinks = 0;        ///< slots at the start that stay exact

  constexpr prim::PolarPairs<RhoBits, ThetaBits> key_codec() const {
    return {.group_size = group_size, .pairing = pairing, .centered = centered};
  }
  constexpr prim::ExactRows value_codec() const { return {}; }
  constexpr Flush key_flush() const { return block_flush_keep(group_size, keep_window); }
  constexpr Flush value_flush() const { return {0, 0}; }

  constexpr Status validate(const CacheShape& shape) const {
    const bool ok = group_size > 0 && group_codec_fits(key_codec(), shape.head_dim, key_flush(), sinks);
    return ok ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::quant
