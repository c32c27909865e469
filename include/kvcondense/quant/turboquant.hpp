#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/hadamard.hpp>
#include <kvcondense/prim/level_codes.hpp>
#include <kvcondense/prim/row_transform.hpp>
#include <kvcondense/prim/sign_sketch.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores a length per token and head, and the rotated direction in levels that suit every direction.
///
/// Idea     numbers of a randomly rotated unit vector all follow one density, whatever the model: the best levels for
///          it are known beforehand, and nothing has to be looked at or kept per group.
/// Source   TurboQuant, arXiv:2504.19874; the renormalised levels are those of
///          serving engines, least squares those of EDEN, arXiv:2108.08842.
/// Needs    keys and values only; keys as they are attended, with RoPE in them.
/// Shapes   one group per (token, kv head); blocks: Hadamard with random signs, then LevelCodes.
/// Cost     bits + 16 / head_dim per number (3.125 for 3 bits, heads of 128); 2^bits levels for all. A rotation per new
///          slot, query head and output. With `sketch` one bit of key_bits is a sign of what the others leave, and 16 / head_dim
///          bits more go to its length (3.25).
/// Numbers  the length is summed in double and stored in fp16 with what `scale` says in it; levels in float32. Zero
///          rows are exact. Expected square error of unit vectors: 0.361, 0.116, 0.034, 0.0093 of 1 to 4 bits.
///          `sketch` makes scores unbiased; their variance, pi / 2 times the error of key_bits - 1 bits, makes softmax worse:
///          it is off, as in the engines that tried both.
/// Differs  a Hadamard transform with signs stands for a dense random rotation, and for the sketch's directions. Signs are
///          head_dim, rounded up to a multiple of 8.
/// Errors   invalid_argument unless 1 <= key_bits, value_bits <= 4 (with a sketch 2 <= key_bits <= 5), and when sinks or
///          residual_window is negative.
struct TurboQuant {
  static constexpr Descriptor about{"turboquant", Stage::quant, "arXiv:2504.19874"};

  int key_bits = 4;
  int value_bits = 4;
  prim::LevelScale scale = prim::LevelScale::unit;
  bool normal_levels = false;  ///< levels for a normal density, as some engines take
  bool sketch = false;         ///< the last bit of a key is a sign of what the others leave (QJL)
  std::uint64_t seed = 1;      ///< of the rotation's signs; 0: none
  index_t residual_window = 0;
  index_t sinks = 0;

  prim::Transformed<prim::Hadamard, prim::Sketched<prim::LevelCodes>> key_codec(const CacheShape& shape) const {
    const index_t signs = sketch ? (shape.head_dim + 7) / 8 * 8 : 0;
    return {rotation(), {levels(level_bits(), shape.head_dim), {signs, ~seed}}};
  }
  prim::Transformed<prim::Hadamard, prim::LevelCodes> value_codec(const CacheShape& shape) const {
    return {rotation(), levels(value_bits, shape.values())};
  }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  Status validate(const CacheShape& shape) const {
    const bool widths = level_bits() >= 1 && level_bits() <= 4 && value_bits >= 1 && value_bits <= 4;
    return widths && residual_window >= 0 && codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr int level_bits() const { return sketch ? key_bits - 1 : key_bits; }
  constexpr prim::Hadamard rotation() const { return {0, seed, true}; }
  prim::LevelCodes levels(int bits, index_t dim) const {
    const int sane = bits < 1 || bits > 4 ? 1 : bits;  // `validate` refuses the others
    return {bits, scale, prim::fit_levels(sane, dim, normal_levels)};
  }
};

}  // namespace kvcondense::quant
