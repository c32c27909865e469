#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/hadamard.hpp>
#include <kvcondense/prim/level_codes.hpp>
#include <kvcondense/prim/row_transform.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores a length per token and head, and the rotated direction in levels that suit every direction.
///
/// Idea     numbers of a randomly rotated unit vector all follow one density, whatever the model: the best levels for
///          it are known beforehand, and nothing has to be looked at or kept per group.
/// Source   TurboQuant (the variant of least square error), arXiv:2504.19874; the renormalised levels are those of
///          serving engines, least squares those of EDEN, arXiv:2108.08842.
/// Needs    keys and values only; keys as they are attended, with RoPE in them.
/// Shapes   one group per (token, kv head); blocks: Hadamard with random signs, then LevelCodes.
/// Cost     bits + 16 / head_dim per number (3.125 for 3 bits, heads of 128); 2^bits levels for all. A rotation per new
///          slot, query head and output.
/// Numbers  the length is summed in double and stored in fp16 with what `scale` says in it; levels in float32. Zero
///          rows are exact. Expected square error of unit vectors: 0.361, 0.116, 0.034, 0.0093 of 1 to 4 bits.
/// Differs  a Hadamard transform with signs stands for a dense random rotation. The second stage of one bit (QJL)
///          is not here: it makes scores unbiased and softmax worse.
/// Errors   invalid_argument unless 1 <= key_bits, value_bits <= 4, and when sinks or residual_window is negative.
struct TurboQuant {
  static constexpr Descriptor about{"turboquant", Stage::quant, "arXiv:2504.19874"};

  int key_bits = 4;
  int value_bits = 4;
  prim::LevelScale scale = prim::LevelScale::unit;
  bool normal_levels = false;  ///< levels for a normal density, as some engines take
  std::uint64_t seed = 1;      ///< of the rotation's signs; 0: none
  index_t residual_window = 0;
  index_t sinks = 0;

  auto key_codec(const CacheShape& shape) const { return codec(key_bits, shape.head_dim); }
  auto value_codec(const CacheShape& shape) const { return codec(value_bits, shape.values()); }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  Status validate(const CacheShape& shape) const {
    const bool widths = key_bits >= 1 && key_bits <= 4 && value_bits >= 1 && value_bits <= 4;
    return widths && residual_window >= 0 && codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  prim::Transformed<prim::Hadamard, prim::LevelCodes> codec(int bits, index_t dim) const {
    const int sane = bits < 1 || bits > 4 ? 1 : bits;  // `validate` refuses the others
    return {{0, seed, true}, {bits, scale, prim::fit_levels(sane, dim, normal_levels)}};
  }
};

}  // namespace kvcondense::quant
