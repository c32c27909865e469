#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim::cpu {

/// Up to four rows of multipliers as integers n, each two signed bytes: n = 128 * plane 0 + plane 1, |n| <= 16256; or one, plane 0.
struct FoldedRows {
  static constexpr index_t most = 4;
  static constexpr float top(int bytes) { return bytes == 2 ? 16256.0f : 127.0f; }

  alignas(64) std::int8_t plane[most][2][max_head_dim];
  float unit[most];  ///< a multiplier is n * unit
  float add[most];   ///< what a row adds to every output
  int bytes;
};

/// Up to four rows of multipliers of up to two groups, multiplied out and not yet rounded.
struct UnroundedRows {
  static constexpr index_t side = 16;

  alignas(64) float product[2][FoldedRows::most][max_head_dim];
  alignas(64) float zero[2][FoldedRows::most][side];  ///< added up, what a row adds to every output
  alignas(16) float inverse[2][FoldedRows::most];     ///< from products to integers
};

/// Thirty-two outputs of a run of blocks, two fields of each block, or, for 8 bits, two blocks; and a second such pair beside it: for 2
/// bits the other two fields of each block.
struct CodeRun {
  const std::byte* first = nullptr;
  index_t second = 0;       ///< 8 bits: bytes from a block to the one with the outputs behind
  index_t step = 64;        ///< bytes to the next block
  index_t steps = 0;        ///< blocks, four multipliers each
  int pairs = 1;
  index_t other = 0;        ///< 4 and 8 bits: bytes from a block to that of the pair behind
  const std::byte* next = nullptr;  ///< what will be read later, as many bytes as the run has, one behind the other
};

/// What is asked for while pairs [from, from + pairs) of a run are read: their share of `next`, as many bytes in a step as the step reads. All of
/// a page is asked for line after line, for a processor reads ahead by itself where lines are asked for in order.
template <int Bits>
struct RunAhead {
  const std::byte* at;
  index_t step = 0;

  RunAhead(const CodeRun& run, int from, int pairs) : at(run.first) {
    if (run.next == nullptr) return;  // the same line again and again, which is there
    step = pairs * 16 * Bits;
    at = run.next + from * run.steps * 16 * Bits;
  }
};

struct MidRule {
  float by_scale = 0.0f, by_offset = 0.0f, by_both = 0.0f;
};

/// Sums of products of codes, in the form that codes are stored in.
///
/// Numbers  multipliers of two bytes are rounded to 1 / 32512 of their row's largest, those of one byte to 1 / 254, everywhere to the
///          same integers; the sums are exact. They depend on the row and what it is multiplied with alone.
struct CodeOps {
  const char* name;

  /// Parameters as they are used: scale[i], and mid[i] = by_scale * scale + by_offset * offset + by_both * scale * offset.
  /// `offsets` may be null: then offsets are 0.
  void (*read)(DType type, const std::byte* scales, const std::byte* offsets, index_t n, const MidRule& rule, float* scale,
               float* mid);

  /// Rows x[r][i] * scale[i], n of them, zeros up to a multiple of 64, for integers of so many bytes; `unit` and `bytes` of `out`. `scale`
  /// null: all 1; `mid` null: all 0. The same rows with the parameters of one group, or of two that lie max_head_dim apart. What
  /// follows waits for the largest of all products: other work between this and `round` hides that.
  void (*multiply)(int bytes, const RowBlock<const float>& x, index_t groups, const float* scale, const float* mid, index_t n,
                   UnroundedRows& products, FoldedRows* out);
  /// The rest of `out`: `rows` rows of the n products of each group as integers, and as `add` the sum of x[r][i] * mid[i] less what `middle`
  /// of every code weighs. It finishes what the last `multiply` into `products` began, for the same groups and n, and all of `out` are of
  /// as many bytes.
  void (*round)(const UnroundedRows& products, index_t rows, index_t groups, index_t n, float middle, FoldedRows* out);

  /// out[r][i] = unit[r] * (sum of n * code) + add[r], and the same added to what is there, for a pair of `first` and the one of
  /// `behind`, which are of as many bytes.
  void (*dot)(int bits, const CodeRun& run, const FoldedRows& first, const FoldedRows& behind, const RowBlock<float>& out);
  void (*dot_add)(int bits, const CodeRun& run, const FoldedRows& first, const FoldedRows& behind, const RowBlock<float>& out);

  /// out[r][i] += x[r][i] * scale[i] + sum[r] * mid[i], for n outputs, a multiple of 32; x has rows of n.
  void (*scale_add)(const float* x, index_t n, const float* scale, const float* mid, const float* sum, const RowBlock<float>& out);
};

}  // namespace kvcondense::prim::cpu
