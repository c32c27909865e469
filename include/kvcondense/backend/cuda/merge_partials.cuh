#pragma once

#include <cmath>
#include <cstddef>
#include <span>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/merge_partials.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int merge_threads = 128, merge_warps = merge_threads / cuda::warp_lanes;
inline constexpr index_t most_parts = cuda::warp_lanes;  ///< of one launch: a lane a part

struct PartList {
  PartialAttention part[most_parts];
};

/// A warp a row: a lane has a part's weight, and all lanes have channels. An output may be that of a part: a channel of all parts is
/// read before it is written, and lse last.
template <int Threads>
__global__ void __launch_bounds__(Threads) merge_parts(PartList list, int count, TensorView<float, 3> out, TensorView<float, 2> lse, LogBase base) {
  const index_t row = static_cast<index_t>(blockIdx.x) * merge_warps + cuda::warp_of_block(), tokens = out.extent[1], dim = out.extent[2];
  if (row >= out.extent[0] * tokens) return;  // whole warps
  const index_t h = row / tokens, t = row % tokens;
  const int lane = cuda::lane_of_warp();
  const float l = lane < count ? list.part[lane].lse(h, t) : -INFINITY, top = cuda::warp_max(l);
  const bool nan = __any_sync(cuda::full_warp, l != l) != 0;
  const float weight = nan ? NAN : l == -INFINITY ? 0.0f : base == LogBase::two ? exp2f(l - top) : expf(l - top);
  const float sum = cuda::warp_sum(weight), inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (index_t first = 0; first < dim; first += cuda::warp_lanes) {
    const index_t d = first + lane;
    float x = 0.0f;
    for (int p = 0; p < count; ++p) {
      const float w = __shfl_sync(cuda::full_warp, weight, p);
      if (w != 0.0f && d < dim) x += w * list.part[p].out(h, t, d);
    }
    if (d < dim) out(h, t, d) = x * inverse;
  }
  __syncwarp();
  if (lse.data != nullptr && lane == 0) lse(h, t) = nan ? NAN : sum == 0.0f ? -INFINITY : top + (base == LogBase::two ? log2f(sum) : logf(sum));
}

}  // namespace cuda_kernels

/// The list of parts is the host's, their numbers the device's. Parts beyond 32 are joined 31 at a time to what is joined already,
/// which lies in the workspace.
template <>
struct MergePartials<Cuda> {
  static std::size_t workspace_bytes(index_t parts, index_t heads, index_t tokens, index_t dim) {
    if (parts <= cuda_kernels::most_parts) return 0;
    return Scratch::align + Scratch::bytes_for<float>(heads * tokens * dim) + Scratch::bytes_for<float>(heads * tokens);
  }

  static Status run(Context<Cuda>& ctx, std::span<const PartialAttention> parts, TensorView<float, 3> out, TensorView<float, 2> lse = {},
                    LogBase base = LogBase::natural) {
    using namespace cuda_kernels;
    const index_t heads = out.extent[0], tokens = out.extent[1], dim = out.extent[2];
    const auto fits = [&](const auto& l) { return l.extent[0] == heads && l.extent[1] == tokens; };
    for (const PartialAttention& p : parts)
      if (!fits(p.out) || p.out.extent[2] != dim || !fits(p.lse)) return Status::shape_mismatch;
    if (lse.data != nullptr && !fits(lse)) return Status::shape_mismatch;
    const auto count = static_cast<index_t>(parts.size());
    if (ctx.workspace().size() < workspace_bytes(count, heads, tokens, dim)) return Status::workspace_too_small;
    TensorView<float, 3> far{};
    TensorView<float, 2> far_lse{};
    if (count > most_parts) {
      Scratch scratch(ctx.workspace());
      far = dense_view(scratch.take<float>(heads * tokens * dim), heads, tokens, dim);
      far_lse = dense_view(scratch.take<float>(heads * tokens), heads, tokens);
    }
    for (index_t at = 0; at == 0 || at < count;) {
      PartList list;
      index_t n = 0;
      if (at > 0) list.part[n++] = {far, far_lse};
      while (n < most_parts && at < count) list.part[n++] = parts[static_cast<std::size_t>(at++)];
      const bool last = at == count;
      const Status s = cuda::launch(ctx, merge_parts<merge_threads>, {cuda::covering(heads * tokens, merge_warps)}, merge_threads, 0, list, static_cast<int>(n),
                                    last ? out : far, last ? lse : far_lse, base);
      if (s != Status::ok || last) return s;
    }
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
