#pragma once

#include <algorithm>
#include <cstring>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/config.hpp>

// Dot products with, and sums over, a tile of unpacked codes. Tile rows are `width` floats, a
// multiple of `lanes`, padded with zeros; the tile has a multiple of four rows.

namespace kvcondense::prim::cpu {

using Quad __attribute__((vector_size(16))) = float;

constexpr index_t padded(index_t n, index_t step) { return (n + step - 1) / step * step; }

/// out[k] = sum of the lanes of the k-th argument.
inline void sum_lanes4(const Lanes& a, const Lanes& b, const Lanes& c, const Lanes& d, float* out) {
  const Quad a4 = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  const Quad b4 = __builtin_shufflevector(b, b, 0, 1, 2, 3) + __builtin_shufflevector(b, b, 4, 5, 6, 7);
  const Quad c4 = __builtin_shufflevector(c, c, 0, 1, 2, 3) + __builtin_shufflevector(c, c, 4, 5, 6, 7);
  const Quad d4 = __builtin_shufflevector(d, d, 0, 1, 2, 3) + __builtin_shufflevector(d, d, 4, 5, 6, 7);
  const Quad ab = __builtin_shufflevector(a4, b4, 0, 4, 1, 5) + __builtin_shufflevector(a4, b4, 2, 6, 3, 7);
  const Quad cd = __builtin_shufflevector(c4, d4, 0, 4, 1, 5) + __builtin_shufflevector(c4, d4, 2, 6, 3, 7);
  const Quad sum = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  std::memcpy(out, &sum, sizeof sum);
}

/// Two query rows with four tile rows: out0[k] = q0 . t[k], out1[k] = q1 . t[k].
inline void dot_2x4(const float* q0, const float* q1, const float* t, index_t width, float* out0, float* out1) {
  Lanes a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{}, x, y, z;
  for (index_t d = 0; d < width; d += lanes) {
    load(x, q0 + d), load(y, q1 + d);
    load(z, t + d), a0 += x * z, b0 += y * z;
    load(z, t + width + d), a1 += x * z, b1 += y * z;
    load(z, t + 2 * width + d), a2 += x * z, b2 += y * z;
    load(z, t + 3 * width + d), a3 += x * z, b3 += y * z;
  }
  sum_lanes4(a0, a1, a2, a3, out0);
  sum_lanes4(b0, b1, b2, b3, out1);
}

inline void dot_1x4(const float* q, const float* t, index_t width, float* out) {
  Lanes a0{}, a1{}, a2{}, a3{}, x, z;
  for (index_t d = 0; d < width; d += lanes) {
    load(x, q + d);
    load(z, t + d), a0 += x * z;
    load(z, t + width + d), a1 += x * z;
    load(z, t + 2 * width + d), a2 += x * z;
    load(z, t + 3 * width + d), a3 += x * z;
  }
  sum_lanes4(a0, a1, a2, a3, out);
}

/// One query row with four tile rows whose groups of `group` columns have scales: out[k] = sum over
/// groups j of scale[j * tile_slots + k] * (q_j . t_kj). Scaling happens in the lanes, before any
/// sum across them.
inline void dot_1x4_scaled(const float* q, const float* t, index_t width, index_t group, const float* scale,
                           float* out) {
  Lanes s0{}, s1{}, s2{}, s3{};
  for (index_t from = 0; from < width; from += group, scale += tile_slots) {
    Lanes a0{}, a1{}, a2{}, a3{}, x, z;
    for (index_t d = from; d < from + group; d += lanes) {
      load(x, q + d);
      load(z, t + d), a0 += x * z;
      load(z, t + width + d), a1 += x * z;
      load(z, t + 2 * width + d), a2 += x * z;
      load(z, t + 3 * width + d), a3 += x * z;
    }
    s0 += a0 * scale[0], s1 += a1 * scale[1], s2 += a2 * scale[2], s3 += a3 * scale[3];
  }
  sum_lanes4(s0, s1, s2, s3, out);
}

/// Every query row (`rows` of `width` floats) with `count` tile rows; `out` rows are `tile_slots` apart.
inline void dot_tile(const float* tile, index_t count, index_t width, const float* queries, index_t rows, float* out) {
  index_t r = 0;
  for (; r + 2 <= rows; r += 2)
    for (index_t i = 0; i < count; i += 4)
      dot_2x4(queries + r * width, queries + (r + 1) * width, tile + i * width, width, out + r * tile_slots + i,
              out + (r + 1) * tile_slots + i);
  if (r < rows)
    for (index_t i = 0; i < count; i += 4)
      dot_1x4(queries + r * width, tile + i * width, width, out + r * tile_slots + i);
}

/// o0[d] += sum of w0[i] * t[i][d], o1 likewise, for columns [from, to) and `count` tile rows.
inline void add_2(const float* t, index_t count, index_t width, index_t from, index_t to, const float* w0,
                  const float* w1, float* o0, float* o1) {
  Lanes a0, a1, a2, a3, b0, b1, b2, b3, z;
  index_t d = from;
  for (; d + 4 * lanes <= to; d += 4 * lanes) {
    load(a0, o0 + d), load(a1, o0 + d + lanes), load(a2, o0 + d + 2 * lanes), load(a3, o0 + d + 3 * lanes);
    load(b0, o1 + d), load(b1, o1 + d + lanes), load(b2, o1 + d + 2 * lanes), load(b3, o1 + d + 3 * lanes);
    for (index_t i = 0; i < count; ++i) {
      const float* row = t + i * width + d;
      load(z, row), a0 += z * w0[i], b0 += z * w1[i];
      load(z, row + lanes), a1 += z * w0[i], b1 += z * w1[i];
      load(z, row + 2 * lanes), a2 += z * w0[i], b2 += z * w1[i];
      load(z, row + 3 * lanes), a3 += z * w0[i], b3 += z * w1[i];
    }
    std::memcpy(o0 + d, &a0, sizeof a0), std::memcpy(o0 + d + lanes, &a1, sizeof a1);
    std::memcpy(o0 + d + 2 * lanes, &a2, sizeof a2), std::memcpy(o0 + d + 3 * lanes, &a3, sizeof a3);
    std::memcpy(o1 + d, &b0, sizeof b0), std::memcpy(o1 + d + lanes, &b1, sizeof b1);
    std::memcpy(o1 + d + 2 * lanes, &b2, sizeof b2), std::memcpy(o1 + d + 3 * lanes, &b3, sizeof b3);
  }
  for (; d < to; d += lanes) {
    load(a0, o0 + d), load(b0, o1 + d);
    for (index_t i = 0; i < count; ++i) load(z, t + i * width + d), a0 += z * w0[i], b0 += z * w1[i];
    std::memcpy(o0 + d, &a0, sizeof a0), std::memcpy(o1 + d, &b0, sizeof b0);
  }
}

inline void add_1(const float* t, index_t count, index_t width, index_t from, index_t to, const float* w, float* o) {
  Lanes a0, a1, a2, a3, z;
  index_t d = from;
  for (; d + 4 * lanes <= to; d += 4 * lanes) {
    load(a0, o + d), load(a1, o + d + lanes), load(a2, o + d + 2 * lanes), load(a3, o + d + 3 * lanes);
    for (index_t i = 0; i < count; ++i) {
      const float* row = t + i * width + d;
      load(z, row), a0 += z * w[i];
      load(z, row + lanes), a1 += z * w[i];
      load(z, row + 2 * lanes), a2 += z * w[i];
      load(z, row + 3 * lanes), a3 += z * w[i];
    }
    std::memcpy(o + d, &a0, sizeof a0), std::memcpy(o + d + lanes, &a1, sizeof a1);
    std::memcpy(o + d + 2 * lanes, &a2, sizeof a2), std::memcpy(o + d + 3 * lanes, &a3, sizeof a3);
  }
  for (; d < to; d += lanes) {
    load(a0, o + d);
    for (index_t i = 0; i < count; ++i) load(z, t + i * width + d), a0 += z * w[i];
    std::memcpy(o + d, &a0, sizeof a0);
  }
}

/// Columns [from, to) of every output row (`width` apart): weights rows are `step` apart.
inline void add_tile(const float* tile, index_t count, index_t width, index_t from, index_t to, const float* weights,
                     index_t step, index_t rows, float* out) {
  index_t r = 0;
  for (; r + 2 <= rows; r += 2)
    add_2(tile, count, width, from, to, weights + r * step, weights + (r + 1) * step, out + r * width,
          out + (r + 1) * width);
  if (r < rows) add_1(tile, count, width, from, to, weights + r * step, out + r * width);
}

}  // namespace kvcondense::prim::cpu
