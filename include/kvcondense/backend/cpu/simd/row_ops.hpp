#pragma once

#include <cstddef>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim::cpu {

/// The inner loops of attention for one instruction set. `row_ops.inl` is their text; every instruction set compiles
/// it with vectors of its own. Blocks come by reference: a copy of one that was just written would be read in larger pieces
/// than it was written in, and wait for all that was begun before.
///
/// Numbers  a sum across the lanes of a vector has one fixed order, and a score adds the chunks of a row in order: it
///          depends on its row and query alone, not on how many rows or queries a call brings. Another instruction
///          set adds in another order, which changes the last bits.
struct RowOps {
  const char* name;

  /// out[r][i] = queries[r] . row i, of `count` rows of `dim` numbers of this type, one behind the other.
  /// `ahead`: what will be read next, as many bytes; null: not known.
  void (*dot_rows)(DType type, const void* rows, index_t count, index_t dim, const RowBlock<const float>& queries,
                   const RowBlock<float>& out, const void* ahead);

  /// out[r][d] += sum over i of weights[r][i] * row i [d], slot after slot.
  void (*add_rows)(DType type, const void* rows, index_t count, index_t dim, const RowBlock<const float>& weights,
                   const RowBlock<float>& out, const void* ahead);

  /// The largest of `top` and the numbers of x that are not NaN.
  float (*largest)(const float* x, index_t n, float top);

  /// out[i] = exp(x[i] - top), and their sum. Relative error below 2e-7; 0 where exp is below 2^-125. x[i] <= top; out may be x.
  float (*exp_below)(const float* x, index_t n, float top, float* out);

  /// x[i] *= factor.
  void (*scale)(float* x, index_t n, float factor);

  /// Turns rows in place: of row i, `step` numbers behind the one before, the pairs (row[t], row[t + pairs]) by the angles
  /// whose cosines and then sines begin at cos_sin + i * cos_step; interleaved: the pairs (row[2t], row[2t + 1]). `back`: by
  /// minus the angles. The same bits as `rotate_row`, where that is compiled without fused products.
  void (*turn_rows)(float* rows, index_t count, index_t step, const float* cos_sin, index_t cos_step, index_t pairs,
                    bool interleaved, bool back);

  /// Between floats and 16-bit numbers; the same bits as `detail::half_bits` and its siblings.
  void (*narrow)(DType type, const float* x, index_t n, std::uint16_t* out);
  void (*widen)(DType type, const std::uint16_t* x, index_t n, float* out);

  /// out[i] = row i . row i, of `count` rows of `dim` floats, one behind the other; the same bits as from dot_rows.
  void (*squares)(const float* rows, index_t count, index_t dim, float* out);
};

}  // namespace kvcondense::prim::cpu
