#pragma once

#include <algorithm>
#include <cstring>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim::cpu {

/// Slots that are unpacked together; a tile of float rows stays in the first-level cache.
inline constexpr index_t tile_slots = 16;

/// Eight floats that the compiler keeps in whatever vector registers the target has. Only as local
/// variables: passing them by value would tie callers to one instruction set.
using Lanes __attribute__((vector_size(32))) = float;
inline constexpr index_t lanes = 8;

inline void load(Lanes& v, const float* p) { std::memcpy(&v, p, sizeof v); }

inline float sum_lanes(const Lanes& v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

/// a . b: eight partial sums, added in one fixed order, the rest one by one. `dot_rows` adds in the
/// same order, so a score never depends on where in a page its slot lies.
inline float dot(const float* KVCONDENSE_RESTRICT a, const float* KVCONDENSE_RESTRICT b, index_t n) {
  Lanes s{}, x, y;
  index_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    load(x, a + i), load(y, b + i);
    s += x * y;
  }
  float sum = sum_lanes(s);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// out[r][i] = queries[r] . tile[i], for i < count rows of `dim` floats.
inline void dot_rows(const float* tile, index_t count, index_t dim, RowBlock<const float> queries,
                     RowBlock<float> out) {
  for (index_t r = 0; r < queries.rows; ++r) {
    const float* q = queries.data + r * queries.step;
    float* o = out.data + r * out.step;
    index_t i = 0;
    for (; i + 4 <= count; i += 4) {  // four rows per pass hide the latency of the additions
      const float* t0 = tile + i * dim;
      Lanes s0{}, s1{}, s2{}, s3{}, x, y;
      index_t d = 0;
      for (; d + lanes <= dim; d += lanes) {
        load(x, q + d);
        load(y, t0 + d), s0 += x * y;
        load(y, t0 + dim + d), s1 += x * y;
        load(y, t0 + 2 * dim + d), s2 += x * y;
        load(y, t0 + 3 * dim + d), s3 += x * y;
      }
      float sum[4] = {sum_lanes(s0), sum_lanes(s1), sum_lanes(s2), sum_lanes(s3)};
      for (; d < dim; ++d)
        for (int k = 0; k < 4; ++k) sum[k] += q[d] * t0[k * dim + d];
      for (int k = 0; k < 4; ++k) o[i + k] = sum[k];
    }
    for (; i < count; ++i) o[i] = dot(q, tile + i * dim, dim);
  }
}

/// out[r][d] += sum over i of weights[r][i] * tile[i][d].
inline void add_rows(const float* tile, index_t count, index_t dim, RowBlock<const float> weights,
                     RowBlock<float> out) {
  for (index_t r = 0; r < weights.rows; ++r) {
    const float* w = weights.data + r * weights.step;
    float* o = out.data + r * out.step;
    index_t d = 0;
    for (; d + lanes <= dim; d += lanes) {
      Lanes s, x;
      load(s, o + d);
      for (index_t i = 0; i < count; ++i) {
        load(x, tile + i * dim + d);
        s += x * w[i];
      }
      std::memcpy(o + d, &s, sizeof s);
    }
    for (; d < dim; ++d) {
      float s = o[d];
      for (index_t i = 0; i < count; ++i) s += w[i] * tile[i * dim + d];
      o[d] = s;
    }
  }
}

}  // namespace kvcondense::prim::cpu
