#pragma once

#include <algorithm>
#include <cstring>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/config.hpp>

// Dot products with, and sums over, a tile of unpacked codes. Tile rows are `width` floats, a
// multiple of `lanes`, padded with zeros; the tile has a multiple of four rows.

namespace kvcondense::prim::cpu {

using Quad __attribute__((vector_size(16))) = float;

/// One register of the target, for sums whose order does not depend on its size.
using Wide __attribute__((vector_size(__BIGGEST_ALIGNMENT__ >= 32 ? 32 : 16))) = float;
inline constexpr index_t wide = sizeof(Wide) / sizeof(float);

template <class V>
void load(V& v, const float* p) {
  std::memcpy(&v, p, sizeof v);
}
template <class V>
void store(const V& v, float* p) {
  std::memcpy(p, &v, sizeof v);
}

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

/// One query row with four tile rows: out[k] = q . t[k].
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
  for (index_t r = 0; r < rows; ++r)
    for (index_t i = 0; i < count; i += 4)
      dot_1x4(queries + r * width, tile + i * width, width, out + r * tile_slots + i);
}

/// o0[d] += sum of w0[i] * t[i][d], o1 likewise, for columns [from, to) and `count` tile rows.
inline void add_2(const float* t, index_t count, index_t width, index_t from, index_t to, const float* w0,
                  const float* w1, float* o0, float* o1) {
  Wide a0, a1, a2, a3, b0, b1, b2, b3, z;
  index_t d = from;
  for (; d + 4 * wide <= to; d += 4 * wide) {
    load(a0, o0 + d), load(a1, o0 + d + wide), load(a2, o0 + d + 2 * wide), load(a3, o0 + d + 3 * wide);
    load(b0, o1 + d), load(b1, o1 + d + wide), load(b2, o1 + d + 2 * wide), load(b3, o1 + d + 3 * wide);
    for (index_t i = 0; i < count; ++i) {
      const float* row = t + i * width + d;
      load(z, row), a0 += z * w0[i], b0 += z * w1[i];
      load(z, row + wide), a1 += z * w0[i], b1 += z * w1[i];
      load(z, row + 2 * wide), a2 += z * w0[i], b2 += z * w1[i];
      load(z, row + 3 * wide), a3 += z * w0[i], b3 += z * w1[i];
    }
    store(a0, o0 + d), store(a1, o0 + d + wide), store(a2, o0 + d + 2 * wide), store(a3, o0 + d + 3 * wide);
    store(b0, o1 + d), store(b1, o1 + d + wide), store(b2, o1 + d + 2 * wide), store(b3, o1 + d + 3 * wide);
  }
  for (; d < to; d += wide) {
    load(a0, o0 + d), load(b0, o1 + d);
    for (index_t i = 0; i < count; ++i) load(z, t + i * width + d), a0 += z * w0[i], b0 += z * w1[i];
    store(a0, o0 + d), store(b0, o1 + d);
  }
}

inline void add_1(const float* t, index_t count, index_t width, index_t from, index_t to, const float* w, float* o) {
  Wide a0, a1, a2, a3, z;
  index_t d = from;
  for (; d + 4 * wide <= to; d += 4 * wide) {
    load(a0, o + d), load(a1, o + d + wide), load(a2, o + d + 2 * wide), load(a3, o + d + 3 * wide);
    for (index_t i = 0; i < count; ++i) {
      const float* row = t + i * width + d;
      load(z, row), a0 += z * w[i];
      load(z, row + wide), a1 += z * w[i];
      load(z, row + 2 * wide), a2 += z * w[i];
      load(z, row + 3 * wide), a3 += z * w[i];
    }
    store(a0, o + d), store(a1, o + d + wide), store(a2, o + d + 2 * wide), store(a3, o + d + 3 * wide);
  }
  for (; d < to; d += wide) {
    load(a0, o + d);
    for (index_t i = 0; i < count; ++i) load(z, t + i * width + d), a0 += z * w[i];
    store(a0, o + d);
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
