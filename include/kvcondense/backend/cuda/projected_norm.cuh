#pragma once

#include <cfloat>
#include <cmath>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_tile.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/projected_norm.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// Calls use(product) for the products of this thread's row of `block` with the `outputs` rows of a head's columns of the output projection. All threads of
/// the block; `others` has room for a tile of these rows.
template <int Threads, class Use>
__device__ inline void for_projections(const float* block, float* others, const float* columns, index_t outputs, index_t width, int dim, Use use) {
  const int stride = tile_stride(dim);
  for (index_t o = 0; o < outputs; o += tile_others) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tile_others * stride; i += Threads) {
      const int r = i / stride, c = i % stride;
      others[i] = o + r < outputs && c < dim ? columns[(o + r) * width + c] : 0.0f;
    }
    __syncthreads();
    float product[tile_each];
    tile_products(block, others, dim, product);
#pragma unroll
    for (int e = 0; e < tile_each; ++e) use(product[e]);
  }
}

/// A block a tile of slots, outputs passing by a tile at a time: products are summed at once. Grid: tiles, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) projected_norms(SlotRows<Cuda> rows, const Ends* skip, const float* matrix, index_t outputs, index_t width,
                                                        index_t group, RaggedView<float> out) {
  static_assert(Threads == tile_threads);
  const int dim = static_cast<int>(rows.dim()), stride = tile_stride(dim);
  auto* block = reinterpret_cast<float*>(cuda::dyn_smem());
  float* others = block + tile_rows * stride;
  const index_t h = blockIdx.y, n = out.length(h);
  const Ends ends = skip == nullptr ? Ends{} : skip[h].within(n);
  const index_t first = ends.prefix + static_cast<index_t>(blockIdx.x) * tile_rows, left = n - ends.suffix - first;
  if (left <= 0) return;  // the whole block
  const int count = left < tile_rows ? static_cast<int>(left) : tile_rows;
  load_rows(rows, h, [&](int r) { return first + r; }, count, tile_rows, block);
  double sum = 0.0;
  for (index_t g = 0; g < group; ++g)
    for_projections<Threads>(block, others, matrix + (h * group + g) * dim, outputs, width, dim, [&](float x) { sum += static_cast<double>(fabsf(x)); });
  sum = cuda::warp_sum(sum, tile_lanes);
  const int row = static_cast<int>(threadIdx.x) / tile_lanes;
  if (threadIdx.x % tile_lanes == 0 && row < count) out.row(h)[first + row] = static_cast<float>(sum / static_cast<double>(group));
}

/// The same for squares, weighed by a share of each query head. Grid: tiles, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) weigh_projected(SlotRows<Cuda> rows, const float* matrix, index_t outputs, index_t width, index_t group,
                                                              RaggedView<const float> shares, RaggedView<float> out) {
  static_assert(Threads == tile_threads);
  const int dim = static_cast<int>(rows.dim()), stride = tile_stride(dim);
  auto* block = reinterpret_cast<float*>(cuda::dyn_smem());
  float* others = block + tile_rows * stride;
  const index_t h = blockIdx.y, n = out.length(h), first = static_cast<index_t>(blockIdx.x) * tile_rows, left = n - first;
  if (left <= 0) return;  // the whole block
  const int count = left < tile_rows ? static_cast<int>(left) : tile_rows;
  const float* const share = shares.data + shares.offset[h] * group + first;
  bool any = false;  // the same in all threads
  for (int i = 0; i < count; ++i) any = any || share[i] > 0.0f;
  const int row = static_cast<int>(threadIdx.x) / tile_lanes;
  const bool mine = threadIdx.x % tile_lanes == 0 && row < count, asked = mine && share[row] > 0.0f;
  float best = asked ? FLT_MIN : 0.0f;
  if (any) load_rows(rows, h, [&](int r) { return first + r; }, count, tile_rows, block);
  for (index_t g = 0; g < group && any; ++g) {
    double sum = 0.0;
    for_projections<Threads>(block, others, matrix + (h * group + g) * dim, outputs, width, dim, [&](float x) { sum += static_cast<double>(x) * static_cast<double>(x); });
    sum = cuda::warp_sum(sum, tile_lanes);
    const float weighed = asked ? share[g * n + row] * static_cast<float>(sqrt(sum)) : 0.0f;
    best = weighed > best ? weighed : best;
  }
  if (mine) out.row(h)[first + row] = best;
}

}  // namespace cuda_kernels

/// Products of a row in another order than the CPU's.
template <>
struct ProjectedNorm<Cuda> {
  static Status run(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, const Ends* skip, const CacheShape& shape, const float* matrix, index_t outputs,
                    RaggedView<float> out) {
    using namespace cuda_kernels;
    if (out.heads != rows.heads() || out.heads != shape.kv_heads || rows.dim() != shape.values()) return Status::shape_mismatch;
    return cuda::launch(ctx, projected_norms<tile_threads>, {cuda::covering(rows.max_slots(), tile_rows), out.heads}, tile_threads,
                        tile_bytes(tile_rows + tile_others, rows.dim()), rows, skip, matrix, outputs, shape.q_heads * shape.values(), shape.group(), out);
  }

  static Status weigh(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, const CacheShape& shape, const float* matrix, index_t outputs,
                      RaggedView<const float> shares, RaggedView<float> out) {
    using namespace cuda_kernels;
    if (out.heads != rows.heads() || shares.heads != out.heads || out.heads != shape.kv_heads || rows.dim() != shape.values()) return Status::shape_mismatch;
    return cuda::launch(ctx, weigh_projected<tile_threads>, {cuda::covering(rows.max_slots(), tile_rows), out.heads}, tile_threads,
                        tile_bytes(tile_rows + tile_others, rows.dim()), rows, matrix, outputs, shape.q_heads * shape.values(), shape.group(), shares, out);
  }
};

}  // namespace kvcondense::prim
