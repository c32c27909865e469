#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/hadamard.hpp>
#include <kvcondense/prim/polar_tree.hpp>
#include <kvcondense/prim/row_transform.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores rotated keys and values as lengths of blocks and recursive angles.
///
/// Idea     the angles of a randomly rotated vector follow densities that are known beforehand, narrower from level to
///          level: fixed tables serve every model, and only one length per block is kept.
/// Source   Han et al., PolarQuant, arXiv:2502.02617.
/// Needs    keys and values only; keys as they are attended, with RoPE in them.
/// Shapes   blocks of 2^levels numbers of a head, which divide it; blocks: Hadamard with random signs, then PolarTree.
/// Cost     3.875 bits per number as set here: (8 * first_bits + 7 * bits + 16) / 16. A rotation per new slot, query head and
///          output; about two products per number to make directions of codes, once for all query heads.
/// Numbers  angles in double, directions in float32, lengths in fp16. Zero blocks are exact.
/// Differs  a Hadamard transform with signs stands for a dense random rotation; levels come from the densities themselves,
///          not from samples.
/// Errors   invalid_argument unless 3 <= levels <= 5, 1 <= first_bits <= 6, 1 <= bits <= 3, blocks divide heads, and sinks
///          and residual_window are not negative.
struct PolarRecursive {
  static constexpr Descriptor about{"polar_recursive", Stage::quant, "arXiv:2502.02617"};

  index_t levels = 4;
  int first_bits = 4;      ///< of an angle of two numbers
  int bits = 2;            ///< of an angle of two lengths
  std::uint64_t seed = 1;  ///< of the rotation's signs; 0: none
  index_t residual_window = 0;
  index_t sinks = 0;

  auto key_codec() const { return codec(); }
  auto value_codec() const { return codec(); }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  Status validate(const CacheShape& shape) const {
    const bool sane = bits >= 1 && bits <= 3 && residual_window >= 0;
    return sane && codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  prim::Transformed<prim::Hadamard, prim::PolarTree> codec() const {
    return {{0, seed, true}, prim::PolarTree::of(levels, first_bits, bits < 1 || bits > 3 ? 1 : bits)};
  }
};

}  // namespace kvcondense::quant
