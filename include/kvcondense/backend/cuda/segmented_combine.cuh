#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/merge_order.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/rope.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/segmented_combine.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int combine_threads = 256, combine_warps = combine_threads / cuda::warp_lanes;
inline constexpr index_t combine_blocks = 32;  ///< a head; lengths are known to the device only, so blocks stride
inline constexpr int combine_each = static_cast<int>(max_head_dim) / cuda::warp_lanes;  ///< channels of a lane

/// Sorts a head's members into `order`; counts[h]: how many. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) sort_members(MergeLinks links, RaggedView<std::int32_t> order, std::int32_t* other, index_t* counts) {
  static_assert(Threads == order_threads);
  auto& sums = cuda::shared_as<OrderScratch>();
  const index_t h = blockIdx.x;
  const index_t m = order_members(links.to.row(h), links.slots(h), order.row(h), other + links.to.offset[h] - links.to.offset[0], sums);
  if (threadIdx.x == 0) counts[h] = m;
}

/// Of a warp: the row it reads, and the logarithms of summed weights per query head.
struct CombineShared {
  float row[combine_warps][max_head_dim];
  float logit[combine_warps][max_head_dim];
};

/// What one warp folds into one target. Lanes share channels; all of the warp call everything.
struct WarpFold {
  const CombineRequest& request;
  const RopeAngles& angles;  ///< no pairs: keys are summed as they are
  const std::int32_t* order;
  index_t h;
  int lane;
  float *row, *logit;
  index_t* repaired;  ///< null, or what sums that had to be brought into range are added to

  __device__ index_t group() const {
    const index_t all = request.queries.extent[0] / request.links.heads();
    return all < max_head_dim ? all : max_head_dim;
  }
  __device__ static float log_sum(float a, float b) {
    const float top = a < b ? b : a;
    return top + logf(expf(a - top) + expf(b - top));
  }
  __device__ float part(index_t j, index_t t) const {
    return j == t || request.links.fan == 1 ? 0.0f : logf(static_cast<float>(request.links.targets_of(h, j, request.targets)));
  }
  /// The row of a slot into shared memory.
  __device__ void read(const SlotRows<Cuda>& rows, index_t j) const {
    const SlotRun at = rows.locate(h, j);
    __syncwarp();
    rows.load(at, row);
    __syncwarp();
  }
  __device__ float logit_of(int dim, index_t g) const {
    const TensorView<const float, 3>& q = request.queries;
    const index_t head = h * (q.extent[0] / request.links.heads()) + g, last = q.extent[1] - 1;
    float s = 0.0f;
    for (int c = lane; c < dim; c += cuda::warp_lanes) s += q(head, last, c) * row[c];
    return cuda::warp_sum(s) * request.softmax_scale;
  }
  __device__ void turn(index_t positions) const {
    const bool halves = angles.pairing == RopePairing::half_split;
    __syncwarp();  // other lanes may still read the row as it is
#pragma unroll 1
    for (index_t p = lane; p < angles.pairs; p += cuda::warp_lanes) {
      const CosSin by = cos_sin(angles, p, positions);
      float &near = row[halves ? p : 2 * p], &far = row[halves ? p + angles.pairs : 2 * p + 1];
      const float x = near, y = far;
      near = x * by.cosine - y * by.sine, far = y * by.cosine + x * by.sine;
    }
    __syncwarp();
  }
  __device__ float length(const float (&sum)[combine_each]) const {
    float square = 0.0f;
#pragma unroll
    for (int k = 0; k < combine_each; ++k) square += sum[k] * sum[k];
    return sqrtf(cuda::warp_sum(square));
  }

  __device__ void keys(const SlotRows<Cuda>& rows, index_t t, const Members& members) const {
    const int dim = static_cast<int>(rows.dim());
    const bool weighs = request.bias.data != nullptr, split = request.split == RowSplit::direction;
    float sum[combine_each] = {}, lengths = 0.0f, size = -INFINITY;  // size: what all weighs whatever the query
    for (index_t g = lane; weighs && g < group(); g += cuda::warp_lanes) logit[g] = -INFINITY;
    for (index_t i = members.first - 1; i < members.end; ++i) {
      const index_t j = i < members.first ? t : order[i];
      read(rows, j);
      if (weighs) {
        const float bias = request.bias.row(h)[j] - part(j, t);
        for (index_t g = 0; g < group(); ++g) {
          const float own = logit_of(dim, g) + bias;
          if (g % cuda::warp_lanes == lane) logit[g] = log_sum(own, logit[g]);
        }
        size = log_sum(size, bias);
      }
      if (angles.pairs > 0 && request.turn.row(h)[j] != 0) turn(request.turn.row(h)[j]);
      float x[combine_each], weight = request.links.key.row(h)[j];
#pragma unroll
      for (int k = 0; k < combine_each; ++k) x[k] = lane + k * cuda::warp_lanes < dim ? row[lane + k * cuda::warp_lanes] : 0.0f;
      if (split) {
        const float own = length(x);
        if (!(own > 0.0f)) continue;
        lengths += weight * own;
        weight /= own;
      }
#pragma unroll
      for (int k = 0; k < combine_each; ++k) sum[k] += weight * x[k];
    }
    if (split) {  // directions that cancel out leave nothing to stretch
      const float own = length(sum), factor = own > 0.0f ? lengths / own : 0.0f;
#pragma unroll
      for (int k = 0; k < combine_each; ++k) sum[k] *= factor;
    }
    if (request.keys) write(rows, t, sum);
    if (!weighs) return;
    read(rows, t);
    float mean = 0.0f;
    for (index_t g = 0; g < group(); ++g) {
      const float own = __shfl_sync(cuda::full_warp, g % cuda::warp_lanes == lane ? logit[g] : 0.0f, static_cast<int>(g % cuda::warp_lanes));
      mean += own - logit_of(dim, g);
    }
    mean /= static_cast<float>(group());
    if (lane == 0) request.bias.row(h)[t] = mean - mean == 0.0f ? mean : size;
  }

  __device__ void values(const SlotRows<Cuda>& rows, index_t t, const Members& members) const {
    const int dim = static_cast<int>(rows.dim());
    float sum[combine_each] = {};
    for (index_t i = members.first - 1; i < members.end; ++i) {
      const index_t j = i < members.first ? t : order[i];
      read(rows, j);
      const float weight = request.links.value.row(h)[j];
#pragma unroll
      for (int k = 0; k < combine_each; ++k)
        if (lane + k * cuda::warp_lanes < dim) sum[k] += weight * row[lane + k * cuda::warp_lanes];
    }
    write(rows, t, sum);
  }

  /// Codes stay as they are.
  __device__ void write(const SlotRows<Cuda>& rows, index_t t, const float (&sum)[combine_each]) const {
    const SlotRun at = rows.locate(h, t);
    if (at.coded) return;
    int bad = 0;
#pragma unroll
    for (int k = 0; k < combine_each; ++k)
      if (lane + k * cuda::warp_lanes < static_cast<int>(rows.dim())) bad += static_cast<int>(rows.set(at, lane + k * cuda::warp_lanes, sum[k]));
    bad = cuda::warp_sum(bad);
    if (lane == 0) add_repaired(repaired, bad);
  }
};

/// A warp a target: it reads that and what folds into it, and writes it alone. Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 1) combine_rows(CombineRequest request, RopeAngles angles, SlotRows<Cuda> keys, SlotRows<Cuda> values,
                                                           const index_t* counts, index_t* repaired) {
  static_assert(Threads == combine_threads);
  CombineShared& shared = cuda::shared_as<CombineShared>();
  const MergeLinks& links = request.links;
  const index_t h = blockIdx.y, n = links.slots(h), m = counts[h];
  const std::int32_t *to = links.to.row(h), *order = request.order.row(h);
  const int warp = cuda::warp_of_block();
  const WarpFold fold{request, angles, order, h, cuda::lane_of_warp(), shared.row[warp], shared.logit[warp], repaired};
  const auto target = [&](index_t t) { return to[t] == t && request.targets[h].has(t); };
  for (index_t t = static_cast<index_t>(blockIdx.x) * combine_warps + warp; t < n && m > 0; t += combine_blocks * combine_warps) {
    if (!target(t)) continue;
    const Members members = members_of(to, order, m, t, links.fan, target);
    if (members.first >= members.end) continue;
    if (request.keys || request.bias.data != nullptr) fold.keys(keys, t, members);
    if (request.values) fold.values(values, t, members);
  }
}

}  // namespace cuda_kernels

/// Needs links to slots that stay and are in `targets`: with a fan of 1 what folds into any other slot is left out here, where the CPU gives it
/// to the next target. Members are summed in slot order as on the CPU; products of a row with a query, and lengths, in another order. Rows are
/// those of columns on the device, at most 256 of them (else `shape_mismatch`); targets lie in exact numbers, a row of codes is left as it is.
/// Sums that the stored type has no number for become the nearest one it has, NaN 0; they are added to `repaired` (on the device, or null).
/// `slots` is a bound of the host's on all heads' slots together; `workspace_too_small` with less than `workspace_bytes`.
template <>
struct SegmentedCombine<Cuda> {
  static std::size_t workspace_bytes(index_t heads, index_t slots) {
    return Scratch::align + Scratch::bytes_for<std::int32_t>(slots) + Scratch::bytes_for<index_t>(heads);
  }

  static Status run(Context<Cuda>& ctx, const CombineRequest& request, const SlotRows<Cuda>& keys, const SlotRows<Cuda>& values, index_t slots,
                    index_t* repaired = nullptr) {
    using namespace cuda_kernels;
    const index_t heads = request.links.heads();
    const bool reads_keys = request.keys || request.bias.data != nullptr;
    if (request.links.fan < 1) return Status::invalid_argument;
    const auto fit = [&](const SlotRows<Cuda>& rows) { return rows.heads() == heads && rows.dim() <= max_head_dim; };
    if ((reads_keys && !fit(keys)) || (request.values && !fit(values))) return Status::shape_mismatch;
    if (request.bias.data != nullptr && (heads == 0 || request.queries.extent[0] % heads != 0 || request.queries.extent[2] != keys.dim()))
      return Status::shape_mismatch;
    if (ctx.workspace().size() < workspace_bytes(heads, slots)) return Status::workspace_too_small;
    Scratch scratch(ctx.workspace());
    auto* other = scratch.take<std::int32_t>(slots);
    auto* counts = scratch.take<index_t>(heads);
    const Status s = cuda::launch(ctx, sort_members<order_threads>, {heads}, order_threads, sizeof(OrderScratch), request.links, request.order, other, counts);
    if (s != Status::ok) return s;
    return cuda::launch(ctx, combine_rows<combine_threads>, {combine_blocks, heads}, combine_threads, sizeof(CombineShared), request,
                        request.angles == nullptr ? RopeAngles{} : *request.angles, keys, values, static_cast<const index_t*>(counts), repaired);
  }
};

}  // namespace kvcondense::prim
