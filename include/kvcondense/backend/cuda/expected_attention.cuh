#pragma once

#include <cmath>
#include <cstddef>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_tile.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/expected_attention.hpp>
#include <kvcondense/prim/rope.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// Per query head: the turned mean, then the turned covariance; and logits, `slots` numbers a head.
struct ExpectedRoom {
  float *turned, *logits;
  index_t dim, slots;

  __device__ float* mean(index_t head) const { return turned + head * dim * (dim + 1); }
  __device__ float* covariance(index_t head) const { return mean(head) + dim; }
  __device__ float* row(index_t head) const { return logits + head * slots; }
};

/// Rows of mean and covariance together, R m and S R^T, then the covariance's columns, R S R^T. A block a query head, a thread a pair of a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) turn_moments(TensorView<const float, 2> mean, TensorView<const float, 3> covariance, MeanTurn turn, ExpectedRoom room) {
  const index_t h = blockIdx.x, dim = room.dim;
  float* m = room.mean(h);
  for (index_t i = threadIdx.x; i < dim * (dim + 1); i += Threads) m[i] = i < dim ? mean(h, i) : covariance(h, i / dim - 1, i % dim);
  __syncthreads();
  for (index_t i = threadIdx.x; i < turn.pairs * (dim + 1); i += Threads) turn.pair(m + i / turn.pairs * dim, 1, i % turn.pairs);
  __syncthreads();
  for (index_t i = threadIdx.x; i < turn.pairs * dim; i += Threads) turn.pair(m + dim + i % dim, dim, i / dim);
}

/// A block a tile of slots, rows of the covariance passing by a tile at a time. Grid: tiles, query heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) expected_logits(SlotRows<Cuda> keys, RaggedView<const float> out, index_t group, index_t skip, bool spread,
                                                              float scale, ExpectedRoom room) {
  static_assert(Threads == tile_threads);
  const int dim = static_cast<int>(keys.dim()), stride = tile_stride(dim);
  auto* block = reinterpret_cast<float*>(cuda::dyn_smem());
  float* others = block + tile_rows * stride;
  const index_t head = blockIdx.y, h = head / group, n = out.length(h), first = skip + static_cast<index_t>(blockIdx.x) * tile_rows;
  if (first >= n) return;  // the whole block
  const int count = n - first < tile_rows ? static_cast<int>(n - first) : tile_rows;
  load_rows(keys, h, [&](int r) { return first + r; }, count, tile_rows, block);
  const int row = static_cast<int>(threadIdx.x) / tile_lanes, lane = static_cast<int>(threadIdx.x) % tile_lanes;
  float linear = 0.0f, square = 0.0f;
  // The mean is the row before the covariance's first one.
  for (int at = -1; at < (spread ? dim : 0); at = at < 0 ? 0 : at + tile_others) {
    const int rows = at < 0 ? 1 : dim - at < tile_others ? dim - at : tile_others;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tile_others * stride; i += Threads) {
      const int r = i / stride, c = i % stride;
      others[i] = r < rows && c < dim ? room.covariance(head)[static_cast<index_t>(at + r) * dim + c] : 0.0f;
    }
    __syncthreads();
    float product[tile_each];
    tile_products(block, others, dim, product);
#pragma unroll
    for (int e = 0; e < tile_each; ++e) {
      const int r = lane + e * tile_lanes;
      if (r >= rows) continue;
      if (at < 0) linear += product[e];
      else square += block[row * stride + at + r] * product[e];
    }
  }
  const float e = scale * cuda::warp_sum(linear, tile_lanes) + 0.5f * scale * scale * cuda::warp_sum(square, tile_lanes);
  if (lane == 0 && row < count) room.row(head)[first + row] = e;
}

/// out: the mean of the softmaxes of a group, one query head after the other. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) expected_shares(index_t group, index_t skip, ExpectedRoom room, RaggedView<float> out) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<float, Threads>>();
  const index_t h = blockIdx.x, n = out.length(h);
  float* o = out.row(h);
  const auto finite = [](float x) { return x - x == 0.0f; };
  for (index_t j = threadIdx.x; j < n; j += Threads) o[j] = 0.0f;
  for (index_t g = 0; g < group; ++g) {
    const float* logit = room.row(h * group + g);
    float top = -INFINITY, sum = 0.0f;
    for (index_t j = skip + threadIdx.x; j < n; j += Threads)
      if (finite(logit[j])) top = logit[j] > top ? logit[j] : top;
    top = cuda::block_reduce(top, [](float a, float b) { return a > b ? a : b; }, scratch);
    for (index_t j = skip + threadIdx.x; j < n; j += Threads) sum += finite(logit[j]) ? expf(logit[j] - top) : 0.0f;
    sum = cuda::block_sum<float, Threads>(sum, scratch);
    const float share = 1.0f / (sum * static_cast<float>(group));
    for (index_t j = skip + threadIdx.x; j < n; j += Threads) o[j] += finite(logit[j]) ? expf(logit[j] - top) * share : NAN;
  }
}

}  // namespace cuda_kernels

/// Sums of a row and of a head in another order than the CPU's. Mean rotations are the host's, made as on the CPU. No head has more slots
/// than `keys` says.
template <>
struct ExpectedAttention<Cuda> {
  static std::size_t workspace_bytes(index_t q_heads, index_t dim, index_t max_slots) {
    return Scratch::bytes_for<float>(q_heads * dim * (dim + 1)) + Scratch::bytes_for<float>(q_heads * max_slots);
  }

  static Status run(Context<Cuda>& ctx, const ExpectedQueries& q, const SlotRows<Cuda>& keys, RaggedView<float> out, Scratch& scratch) {
    using namespace cuda_kernels;
    const index_t dim = keys.dim(), heads = out.heads, q_heads = q.mean.extent[0];
    if (heads != keys.heads() || (heads > 0 && q_heads % heads != 0) || q.skip < 0) return Status::shape_mismatch;
    const Expected<RopeAngles> angles = rope_angles(q.rope, dim);
    if (!angles) return angles.status();
    ExpectedRoom room{nullptr, nullptr, dim, keys.max_slots()};
    room.turned = scratch.take<float>(q_heads * dim * (dim + 1));
    room.logits = scratch.take<float>(q_heads * room.slots);
    if (room.turned == nullptr || room.logits == nullptr) return Status::workspace_too_small;
    if (heads == 0) return Status::ok;
    const index_t group = q_heads / heads;
    Status s = cuda::launch(ctx, turn_moments<tile_threads>, {q_heads}, tile_threads, 0, q.mean, q.covariance, mean_turn(*angles, q.position, q.horizon), room);
    if (s == Status::ok)
      s = cuda::launch(ctx, expected_logits<tile_threads>, {cuda::covering(room.slots, tile_rows), q_heads}, tile_threads,
                       tile_bytes(tile_rows + tile_others, dim), keys, RaggedView<const float>(out), group, q.skip, q.spread, q.scale, room);
    if (s == Status::ok)
      s = cuda::launch(ctx, expected_shares<tile_threads>, {heads}, tile_threads, sizeof(cuda::BlockScratch<float, tile_threads>), group, q.skip, room, out);
    return s;
  }
};

}  // namespace kvcondense::prim
