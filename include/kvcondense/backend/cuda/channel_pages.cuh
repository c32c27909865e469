#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/unit_index.cuh>
#include <kvcondense/backend/cuda/unit_scores.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>

// Keys channel by channel, of which a query reads a few; and the mean of all values for what is not read.

namespace kvcondense::prim {
namespace cuda_kernels {

struct TurnedKeysShared {
  float row[index_tile][max_head_dim + 4];  ///< rows that follow one another begin in other banks
};

/// The sum of a head's values of one page, in the second plane.
__device__ inline float* page_sums(const UnitPlanes& planes, index_t head, index_t page, index_t values) {
  return reinterpret_cast<float*>(planes.plane[1] + head * planes.room[1]) + page * values;
}

/// Pages whose slots have changed: keys turned so that a channel's numbers lie side by side, values summed slot after slot as on the CPU.
/// A block a page. Grid: pages from `base` on, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) index_channels(SlotRows<Cuda> keys, SlotRows<Cuda> values, UnitPlanes planes, const index_t* from,
                                                             const index_t* known, index_t base) {
  static_assert(Threads == index_threads);
  TurnedKeysShared& shared = cuda::shared_as<TurnedKeysShared>();
  const UnitSlots s(planes, from, known, base);
  if (s.empty()) return;  // the same in all threads
  const int dim = static_cast<int>(keys.dim()), width = static_cast<int>(values.dim()), page = static_cast<int>(planes.slots);
  std::byte* const to = planes.row(0, s.head, s.u);
  float sum[index_columns] = {};
  for (index_t at = s.begin; at < s.end; at += index_tile) {
    const int count = static_cast<int>(s.end - at < index_tile ? s.end - at : index_tile), first = static_cast<int>(at - s.begin);
    const auto load = [&](const SlotRows<Cuda>& rows) {
      __syncthreads();  // what was loaded before has been read
      for (int i = cuda::warp_of_block(); i < count; i += index_warps) rows.load(rows.locate(s.head, at + i), shared.row[i]);
      __syncthreads();
    };
    load(keys);
    for (int i = static_cast<int>(threadIdx.x); i < dim * index_tile; i += Threads) {
      const int c = i / index_tile, slot = i % index_tile;
      if (slot < count) write_number(planes.dtype, to, c * page + first + slot, shared.row[slot][c]);
    }
    load(values);
#pragma unroll
    for (int k = 0; k < index_columns; ++k) {
      const int c = static_cast<int>(threadIdx.x) + k * Threads;
      for (int i = 0; c < width && i < count; ++i) sum[k] += shared.row[i][c];
    }
  }
#pragma unroll
  for (int k = 0; k < index_columns; ++k)
    if (const int c = static_cast<int>(threadIdx.x) + k * Threads; c < width) page_sums(planes, s.head, s.u, width)[c] = sum[k];
}

/// See retrieve::TopChannels: a row of `dim` numbers and the temperature. A block a query row. Channels that are NaN are the smallest.
template <int Threads>
__global__ void __launch_bounds__(Threads) keep_top_channels(TensorView<const float, 3> queries, index_t token, index_t channels, float* out) {
  QueryShared& shared = cuda::shared_as<QueryShared>();
  const int dim = static_cast<int>(queries.extent[2]), thread = static_cast<int>(threadIdx.x);
  const index_t row = blockIdx.x, count = channels < dim ? channels : dim;
  float* const to = out + row * (dim + 1);
  for (int c = thread; c < dim; c += Threads) shared.size[c] = rank_bits(fabsf(queries(row, token, c))), to[c] = 0.0f;
  __syncthreads();
  rank_channels(shared, dim);
  for (int i = thread; i < static_cast<int>(count); i += Threads) to[shared.best[i]] = queries(row, token, shared.best[i]);
  if (thread != 0) return;
  double kept = 0.0, all = 0.0;
  for (int c = 0; c < dim; ++c) all += static_cast<double>(fabsf(queries(row, token, c)));
  for (index_t i = 0; i < count; ++i) kept += static_cast<double>(fabsf(queries(row, token, shared.best[i])));
  to[dim] = all > 0.0 ? static_cast<float>(sqrt(static_cast<double>(dim) * kept / all)) : 1.0f;
}

/// Logits over the temperature, a thread a candidate: products and sums in the CPU's order. Grid: tiles of candidates, query rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) score_channels(UnitPlanes planes, UnitScores scores, const float* queries, int dim) {
  auto* const query = reinterpret_cast<float*>(cuda::dyn_smem());
  const index_t row = blockIdx.y, head = row / scores.per_head, n = scores.out.length(row);
  const index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (static_cast<index_t>(blockIdx.x) * Threads >= n) return;  // the same in all threads
  for (int c = static_cast<int>(threadIdx.x); c <= dim; c += Threads) query[c] = queries[row * (dim + 1) + c];
  __syncthreads();
  if (i >= n) return;
  const index_t slot = scores.first[head] + i;
  const int page = static_cast<int>(planes.slots), at = static_cast<int>(slot % page);
  const std::byte* const from = planes.row(0, head, slot / page);
  float sum = 0.0f;
  for (int c = 0; c < dim; ++c) {
    const float q = query[c];
    if (q == 0.0f) continue;  // not read
    sum = __fadd_rn(sum, __fmul_rn(q, read_number(planes.dtype, from, c * page + at)));
  }
  scores.out.row(row)[i] = sum / query[dim];
}

inline constexpr int share_threads = 256;

struct ShareShared {
  cuda::BlockScratch<double, share_threads> sums;
  cuda::BlockScratch<float, share_threads> tops;
  float row[share_threads / cuda::warp_lanes][max_head_dim];
};

}  // namespace cuda_kernels

/// What a row of selection chose among candidates that begin with slot 0, and by what.
struct ChosenByScore {
  RaggedView<const float> scores;
  RaggedView<const std::int32_t> units;
  const index_t* count = nullptr;
  const float* queries = nullptr;  ///< rows of ChannelPages::queries
};

namespace cuda_kernels {

/// What part of the approximate attention the chosen slots, and those that no index knows, draw. A block a query row.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) share_of_chosen(SlotRows<Cuda> keys, ChosenByScore chosen, const index_t* slots, index_t per_head, float* out) {
  static_assert(Threads == share_threads);
  ShareShared& shared = cuda::shared_as<ShareShared>();
  const index_t row = blockIdx.x, head = row / per_head, n = chosen.scores.length(row);
  const int dim = static_cast<int>(keys.dim());
  const float* const x = chosen.scores.row(row);
  if (n == 0) {  // nothing is left out
    if (threadIdx.x == 0) out[row] = 1.0f;
    return;
  }
  const auto larger = [](auto a, auto b) { return a > b ? a : b; };
  float most = -INFINITY;
  for (index_t i = threadIdx.x; i < n; i += Threads) most = x[i] > most ? x[i] : most;
  most = cuda::block_reduce(most, larger, shared.tops);
  double all = 0.0, read = 0.0;
  for (index_t i = threadIdx.x; i < n; i += Threads)
    if (x[i] == x[i]) all += static_cast<double>(expf(x[i] - most));
  for (index_t i = threadIdx.x; i < chosen.count[row]; i += Threads)
    if (const float y = x[chosen.units.row(row)[i]]; y == y) read += static_cast<double>(expf(y - most));
  // Slots that no index knows are read, and weigh as much as the same channels say. A warp a slot, in each lane the same numbers.
  const float* const query = chosen.queries + row * (dim + 1);
  float* const key = shared.row[cuda::warp_of_block()];
  double top = -INFINITY, fresh = 0.0;
  for (index_t slot = n + cuda::warp_of_block(); slot < slots[head]; slot += Threads / cuda::warp_lanes) {
    keys.load(keys.locate(head, slot), key);
    double dot = 0.0;
    for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) dot += static_cast<double>(query[c]) * static_cast<double>(key[c]);
    const double logit = cuda::warp_sum(dot) / static_cast<double>(query[dim]);
    if (logit > top) fresh = top == -INFINITY ? 1.0 : fresh * exp(top - logit) + 1.0, top = logit;
    else if (logit == logit) fresh += exp(logit - top);
  }
  all = cuda::block_sum<double, Threads>(all, shared.sums);
  read = cuda::block_sum<double, Threads>(read, shared.sums);
  const double highest = cuda::block_reduce(larger(top, static_cast<double>(most)), larger, shared.sums);
  fresh = cuda::block_sum<double, Threads>(cuda::lane_of_warp() == 0 && top > -INFINITY ? fresh * exp(top - highest) : 0.0, shared.sums);
  if (threadIdx.x != 0) return;
  const double known = most > -INFINITY ? exp(static_cast<double>(most) - highest) : 0.0;
  all = known > 0.0 ? all * known : 0.0, read = known > 0.0 ? read * known : 0.0;
  all += fresh, read += fresh;
  out[row] = all > 0.0 ? static_cast<float>(read / all) : 1.0f;
}

struct MeanShared {
  float row[index_tile][max_head_dim];
};

/// out = share * out + (1 - share) * the mean of all values, those that no index knows too. A block a KV head, a thread a channel; pages and
/// slots in the CPU's order.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) mix_with_mean(SlotRows<Cuda> values, UnitPlanes planes, const index_t* slots, const index_t* known,
                                                         const float* share, TensorView<float, 3> out) {
  static_assert(Threads >= max_head_dim);
  MeanShared& shared = cuda::shared_as<MeanShared>();
  const index_t head = blockIdx.x, n = slots[head], group = out.extent[0] / gridDim.x;
  const int width = static_cast<int>(values.dim()), c = static_cast<int>(threadIdx.x);
  float sum = 0.0f;
  if (c < width)
    for (index_t p = 0; p * planes.slots < known[head]; ++p) sum += page_sums(planes, head, p, width)[c];
  for (index_t at = known[head]; at < n; at += index_tile) {
    const int count = static_cast<int>(n - at < index_tile ? n - at : index_tile);
    __syncthreads();
    for (int i = cuda::warp_of_block(); i < count; i += Threads / cuda::warp_lanes) values.load(values.locate(head, at + i), shared.row[i]);
    __syncthreads();
    for (int i = 0; c < width && i < count; ++i) sum += shared.row[i][c];
  }
  if (c >= width) return;
  const float mean = n > 0 ? sum / static_cast<float>(n) : 0.0f;
  for (index_t q = head * group; q < (head + 1) * group; ++q)
    for (index_t t = 0; t < out.extent[1]; ++t) out(q, t, c) = share[q] * out(q, t, c) + (1.0f - share[q]) * mean;
}

}  // namespace cuda_kernels

/// A second copy of keys, channel by channel in pages of `UnitPlanes::slots` slots, and the sum of the values of every page, of all heads of a layer.
///
/// Needs    all pointers are the device's; `from`, `known` and `slots` may lie in steering memory.
/// Cost     a page is made anew as soon as a slot of it changes. A query row reads its channels of all candidates.
/// Numbers  scores, sums and means bit for bit the CPU's where its compiler leaves products and sums apart (-ffp-contract=off); shares to 1e-6. Of a query's channels NaN are
///          the smallest; the CPU takes none of them but the first one, and that always.
struct ChannelPages {
  static Status build(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const SlotRows<Cuda>& values, const UnitPlanes& planes, const index_t* from,
                      const index_t* known, index_t first, index_t last) {
    using namespace cuda_kernels;
    if (first >= last) return Status::ok;
    return cuda::launch(ctx, index_channels<index_threads>, {last - first, keys.heads()}, index_threads, sizeof(TurnedKeysShared), keys, values, planes, from,
                        known, first);
  }
  /// Rows of token `token`, one per query head: [q_heads, head_dim + 1].
  static Status queries(Context<Cuda>& ctx, TensorView<const float, 3> queries, index_t token, index_t channels, float* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, keep_top_channels<index_threads>, {queries.extent[0]}, index_threads, sizeof(QueryShared), queries, token, channels, out);
  }
  /// `most`: no head has more candidates.
  static Status score(Context<Cuda>& ctx, const UnitPlanes& planes, const UnitScores& scores, const float* queries, index_t dim, index_t most) {
    using namespace cuda_kernels;
    constexpr int threads = 256;
    return cuda::launch(ctx, score_channels<threads>, {cuda::covering(most, threads), scores.out.heads}, threads, static_cast<std::size_t>(dim + 1) * sizeof(float),
                        planes, scores, queries, static_cast<int>(dim));
  }
  /// out[row]: what part of the approximate attention of a row is read.
  static Status share(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const ChosenByScore& chosen, const index_t* slots, float* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, share_of_chosen<share_threads>, {chosen.scores.heads}, share_threads, sizeof(ShareShared), keys, chosen, slots,
                        chosen.scores.heads / keys.heads(), out);
  }
  /// `share`: per query head.
  static Status mix(Context<Cuda>& ctx, const SlotRows<Cuda>& values, const UnitPlanes& planes, const index_t* slots, const index_t* known, const float* share,
                    TensorView<float, 3> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, mix_with_mean<static_cast<int>(max_head_dim)>, {values.heads()}, static_cast<int>(max_head_dim), sizeof(MeanShared), values, planes,
                        slots, known, share, out);
  }
};

}  // namespace kvcondense::prim
