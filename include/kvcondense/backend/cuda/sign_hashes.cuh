#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/unit_biases.cuh>
#include <kvcondense/backend/cuda/unit_index.cuh>
#include <kvcondense/backend/cuda/unit_lists.cuh>
#include <kvcondense/backend/cuda/unit_scores.cuh>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>

// An index of words per slot: on which sides of planes its key lies, seen from a mean; and samples of slots that meet queries in such words.

namespace kvcondense::prim {
namespace cuda_kernels {

/// Words of a slot, one per table.
__device__ inline std::uint16_t* words_of(const UnitPlanes& planes, index_t head, index_t slot, index_t tables) {
  return reinterpret_cast<std::uint16_t*>(planes.plane[0] + head * planes.room[0]) + slot * tables;
}
/// Sides of the planes of a table, products and sums in the CPU's order.
__device__ inline std::uint32_t word_of(const HashPlanes& planes, index_t table, const float* row) {
  std::uint32_t bits = 0;
  for (index_t b = 0; b < planes.bits; ++b) {
    const float* const plane = planes.data + (table * planes.bits + b) * planes.dim;
    float sum = 0.0f;
    for (index_t d = 0; d < planes.dim; ++d) sum = __fadd_rn(sum, __fmul_rn(row[d], plane[d]));
    bits |= static_cast<std::uint32_t>(sum > 0.0f) << b;
  }
  return bits;
}

struct MeanKeyShared {
  float row[index_tile][max_head_dim];
};

/// The mean of a head's keys of slots [first, last), sums in double in the order of slots. One block.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) mean_key(SlotRows<Cuda> keys, index_t head, index_t first, index_t last, double count, float* out) {
  MeanKeyShared& shared = cuda::shared_as<MeanKeyShared>();
  const int dim = static_cast<int>(keys.dim());
  double sum[index_columns] = {};
  for (index_t at = first; at < last; at += index_tile) {
    const int n = static_cast<int>(last - at < index_tile ? last - at : index_tile);
    __syncthreads();  // the tile before has been read
    for (int i = cuda::warp_of_block(); i < n; i += index_warps) keys.load(keys.locate(head, at + i), shared.row[i]);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < index_columns; ++k) {
      const int c = static_cast<int>(threadIdx.x) + k * Threads;
      for (int i = 0; c < dim && i < n; ++i) sum[k] += static_cast<double>(shared.row[i][c]);
    }
  }
#pragma unroll
  for (int k = 0; k < index_columns; ++k)
    if (const int c = static_cast<int>(threadIdx.x) + k * Threads; c < dim) out[c] = static_cast<float>(sum[k] / count);
}

/// A block a slot, threads tables. Grid: as index_units.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) index_words(SlotRows<Cuda> keys, UnitPlanes planes, HashPlanes sides, const index_t* from, const index_t* known, index_t base) {
  BasisShared& shared = cuda::shared_as<BasisShared>();
  const UnitSlots s(planes, from, known, base);
  if (s.empty()) return;  // the same in all threads
  if (cuda::warp_of_block() == 0) keys.load(keys.locate(s.head, s.begin), shared.row);
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < static_cast<int>(keys.dim()); c += Threads) shared.row[c] -= planes.found[s.head * planes.found_room + c];
  __syncthreads();
  std::uint16_t* const words = words_of(planes, s.head, s.u, sides.tables);
  for (index_t t = threadIdx.x; t < sides.tables; t += Threads) words[t] = static_cast<std::uint16_t>(word_of(sides, t, shared.row));
}

/// A block a query row, threads tables.
template <int Threads>
__global__ void __launch_bounds__(Threads) query_words(HashPlanes sides, const float* queries, float* out) {
  const index_t row = blockIdx.x;
  for (index_t t = threadIdx.x; t < sides.tables; t += Threads) out[row * sides.tables + t] = static_cast<float>(word_of(sides, t, queries + row * sides.dim));
}

/// In how many tables candidates meet a query row: a warp a candidate. Grid: blocks of candidates, rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) count_words(UnitPlanes planes, UnitScores scores, index_t tables, const float* wanted) {
  const index_t row = blockIdx.y, head = row / scores.per_head, u = static_cast<index_t>(blockIdx.x) * (Threads / cuda::warp_lanes) + cuda::warp_of_block();
  if (u >= scores.out.length(row)) return;  // the same in a warp
  const std::uint16_t* const words = words_of(planes, head, scores.first[head] + u, tables);
  int same = 0;
  for (index_t t = cuda::lane_of_warp(); t < tables; t += cuda::warp_lanes) same += static_cast<float>(words[t]) == wanted[row * tables + t] ? 1 : 0;
  same = cuda::warp_sum(same);
  if (cuda::lane_of_warp() == 0) scores.out.row(row)[u] = static_cast<float>(same);
}

/// Candidates that score `least` or more. A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) list_met(RaggedView<const float> scores, float least, RaggedView<std::int32_t> units, index_t* count) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<std::int32_t, Threads>>();
  const index_t row = blockIdx.x;
  const float* const x = scores.row(row);
  const std::int32_t all = list_where(scores.length(row), [&](index_t u) { return x[u] >= least; }, units.row(row), scratch);
  if (threadIdx.x == 0) count[row] = all;
}

struct ChanceShared {
  float row[index_warps][max_head_dim];
};

/// The chance that vectors of this cosine meet in at least two tables.
__device__ inline double chance_to_meet(double cosine, index_t bits, index_t tables) {
  const double within = cosine < -1.0 ? -1.0 : cosine > 1.0 ? 1.0 : cosine;  // NaN stays
  const double meets = pow(1.0 - acos(within) / 3.14159265358979323846, static_cast<double>(bits)), l = static_cast<double>(tables);
  return 1.0 - pow(1.0 - meets, l - 1.0) * (l * meets + 1.0 - meets);
}

/// Minus the logarithm of the chance with which a listed slot meets its query: a warp a slot. Grid: blocks of places in the lists, rows.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) chance_biases(SlotRows<Cuda> keys, UnitPlanes planes, BiasedUnits chosen, index_t bits, index_t tables, float* bias) {
  ChanceShared& shared = cuda::shared_as<ChanceShared>();
  const index_t row = blockIdx.y, head = row * chosen.heads / chosen.units.heads;
  const index_t i = static_cast<index_t>(blockIdx.x) * index_warps + cuda::warp_of_block();
  if (i >= chosen.count[row]) return;  // the same in a warp
  const int dim = static_cast<int>(keys.dim());
  float* const key = shared.row[cuda::warp_of_block()];
  keys.load(keys.locate(head, chosen.origin + (chosen.first[head] + chosen.units.row(row)[i]) * chosen.size), key);
  const float *const mean = planes.found + head * planes.found_room, *const query = chosen.queries + row * dim;
  double dot = 0.0, norm = 0.0, length = 0.0;
  for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) {
    const double x = static_cast<double>(key[c]) - static_cast<double>(mean[c]), q = static_cast<double>(query[c]);
    dot += q * x, norm += x * x, length += q * q;
  }
  dot = cuda::warp_sum(dot), norm = cuda::warp_sum(norm), length = cuda::warp_sum(length);
  const double cosine = norm > 0.0 && length > 0.0 ? dot / sqrt(norm * length) : 0.0;
  if (cuda::lane_of_warp() == 0) bias[chosen.units.offset[row] + i] = static_cast<float>(-log(chance_to_meet(cosine, bits, tables) + 1e-4));
}

}  // namespace cuda_kernels

/// Planes lie on the device, and so does what a prompt taught (UnitPlanes::found): the mean from which keys are seen.
///
/// Numbers  words bit for bit the CPU's, means in double in its order; biases to 1e-6.
struct SignWords {
  /// The mean key of slots [first, last) of a head.
  static Status mean(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, index_t head, index_t first, index_t last, double count, float* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, mean_key<index_threads>, {1}, index_threads, sizeof(MeanKeyShared), keys, head, first, last, count, out);
  }
  /// As UnitIndex::build.
  static Status build(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const UnitPlanes& planes, const HashPlanes& sides, const index_t* from, const index_t* known,
                      index_t first, index_t last) {
    using namespace cuda_kernels;
    if (first >= last) return Status::ok;
    return cuda::launch(ctx, index_words<index_threads>, {last - first, keys.heads()}, index_threads, sizeof(BasisShared), keys, planes, sides, from, known, first);
  }
  /// Words [rows, tables] of query rows, as numbers.
  static Status queries(Context<Cuda>& ctx, const HashPlanes& sides, const float* queries, index_t rows, float* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, query_words<index_threads>, {rows}, index_threads, 0, sides, queries, out);
  }
  /// In how many tables candidates meet these. `most`: no head has more candidates.
  static Status score(Context<Cuda>& ctx, const UnitPlanes& planes, const UnitScores& scores, index_t tables, const float* wanted, index_t most) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, count_words<index_threads>, {cuda::covering(most, index_warps), scores.out.heads}, index_threads, 0, planes, scores, tables, wanted);
  }
  /// Candidates that meet their query in two tables or more.
  static Status sample(Context<Cuda>& ctx, RaggedView<const float> scores, RaggedView<std::int32_t> units, index_t* count) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, list_met<256>, {scores.heads}, 256, sizeof(cuda::BlockScratch<std::int32_t, 256>), scores, 2.0f, units, count);
  }
  /// What weighs a sampled slot by its chance. `most`: no row has more of them.
  static Status chances(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const UnitPlanes& planes, const BiasedUnits& chosen, index_t bits, index_t tables, index_t most,
                        float* bias) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, chance_biases<index_threads>, {cuda::covering(most, index_warps), chosen.units.heads}, index_threads, sizeof(ChanceShared), keys, planes,
                        chosen, bits, tables, bias);
  }
};

}  // namespace kvcondense::prim
