#pragma once

#include <algorithm>
#include <cstring>

#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/rope_config.hpp>

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

/// out[r][i] = queries[r] . tile[i], for i < count rows of `dim` floats.
inline void dot_rows(const float* tile, index_t count, index_t dim, RowBlock<const float> queries,
                     RowBlock<float> out) {
  row_ops().dot_rows(DType::f32, tile, count, dim, queries, out, nullptr);
}

/// a . b, added in the same order as `dot_rows` does, so a score never depends on where in a page its slot lies.
inline float dot(const float* a, const float* b, index_t n) {
  float sum;
  dot_rows(b, 1, n, {a, 1, n}, {&sum, 1, 1});
  return sum;
}

/// out[r][d] += sum over i of weights[r][i] * tile[i][d].
inline void add_rows(const float* tile, index_t count, index_t dim, RowBlock<const float> weights,
                     RowBlock<float> out) {
  row_ops().add_rows(DType::f32, tile, count, dim, weights, out, nullptr);
}

/// Turns `count` rows of `dim` numbers, one behind the other: cosines and sines of row i begin at cos_sin + i * step.
inline void turn_rows(float* rows, index_t count, index_t dim, const float* cos_sin, index_t step, const RopeAngles& angles,
                      bool back = false) {
  row_ops().turn_rows(rows, count, dim, cos_sin, step, angles.pairs, angles.pairing == RopePairing::interleaved, back);
}

}  // namespace kvcondense::prim::cpu
