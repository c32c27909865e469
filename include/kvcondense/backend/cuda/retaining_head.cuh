#pragma once

#include <cmath>
#include <cstddef>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/retaining_head.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int retaining_threads = 256, retaining_warps = retaining_threads / cuda::warp_lanes, retaining_tokens = 8;

__device__ inline float activate(float x, Activation act) {
  switch (act) {
    case Activation::silu: return x / (1.0f + expf(-x));
    case Activation::gelu_tanh: return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case Activation::relu: return x > 0.0f ? x : 0.0f;
  }
  return x;
}

struct RetainingShared {
  float part[retaining_warps][retaining_tokens][cuda::warp_lanes];
};

/// hidden[t][u] = act(x W_in): a block some tokens and a warp's width of units; warps share a head's channels, and their sums are added in
/// order. Grid: tiles of tokens, strips of units.
template <int Threads>
__global__ void __launch_bounds__(Threads) retaining_hidden(RetainingWeights w, Activation act, TensorView<const float, 3> queries, TensorView<const float, 3> keys,
                                                            TensorView<const float, 3> values, float* hidden) {
  static_assert(Threads == retaining_threads && retaining_warps == retaining_tokens);
  RetainingShared& shared = cuda::shared_as<RetainingShared>();
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block();
  const index_t first = static_cast<index_t>(blockIdx.x) * retaining_tokens, u = static_cast<index_t>(blockIdx.y) * cuda::warp_lanes + lane;
  const index_t left = queries.extent[1] - first;
  const int count = left < retaining_tokens ? static_cast<int>(left) : retaining_tokens;
  float sum[retaining_tokens] = {};
  index_t from = 0;  // the row of W_in of a head's first channel
  for (int which = 0; which < 3; ++which) {
    const TensorView<const float, 3>& part = which == 0 ? queries : which == 1 ? keys : values;
    for (index_t head = 0; head < part.extent[0]; ++head, from += part.extent[2])
      for (index_t d = warp; d < part.extent[2] && u < w.hidden; d += retaining_warps) {
        const float weight = w.weights_in[(from + d) * w.hidden + u];
#pragma unroll
        for (int t = 0; t < retaining_tokens; ++t)
          if (t < count) sum[t] += part(head, first + t, d) * weight;
      }
  }
#pragma unroll
  for (int t = 0; t < retaining_tokens; ++t) shared.part[warp][t][lane] = sum[t];
  __syncthreads();
  float all = 0.0f;
  for (int other = 0; other < retaining_warps; ++other) all += shared.part[other][warp][lane];
  if (warp < count && u < w.hidden) hidden[(first + warp) * w.hidden + u] = activate(all, act);
}

/// out[h][slot of t] = hidden of t times W_out's column h: a warp a head. Grid: tokens.
template <int Threads>
__global__ void __launch_bounds__(Threads) retaining_scores(RetainingWeights w, const float* hidden, RaggedView<float> out) {
  const index_t t = blockIdx.x, tokens = gridDim.x;
  for (index_t h = cuda::warp_of_block(); h < out.heads; h += Threads / cuda::warp_lanes) {
    const index_t slot = out.length(h) - tokens + t;
    if (slot < 0) continue;  // the token is not stored here
    float sum = 0.0f;
    for (index_t u = cuda::lane_of_warp(); u < w.hidden; u += cuda::warp_lanes) sum += hidden[t * w.hidden + u] * w.weights_out[u * out.heads + h];
    sum = cuda::warp_sum(sum);
    if (cuda::lane_of_warp() == 0) out.row(h)[slot] = sum;
  }
}

}  // namespace cuda_kernels

/// Sums in another order than the CPU's. What the hidden units say of every token lies in the workspace: `workspace_too_small` with less than
/// `workspace_bytes`.
template <>
struct RetainingHead<Cuda> {
  static std::size_t workspace_bytes(index_t tokens, index_t hidden) { return Scratch::align + Scratch::bytes_for<float>(tokens * hidden); }

  static Status write(Context<Cuda>& ctx, const RetainingWeights& w, Activation act, TensorView<const float, 3> queries, TensorView<const float, 3> keys,
                      TensorView<const float, 3> values, RaggedView<float> out) {
    using namespace cuda_kernels;
    const index_t tokens = queries.extent[1];
    index_t inputs = 0;
    for (const auto* p : {&queries, &keys, &values}) inputs += p->extent[0] * p->extent[2];
    if (inputs != w.inputs || keys.extent[0] != out.heads || keys.extent[1] != tokens || values.extent[1] != tokens) return Status::shape_mismatch;
    if (ctx.workspace().size() < workspace_bytes(tokens, w.hidden)) return Status::workspace_too_small;
    float* hidden = Scratch(ctx.workspace()).take<float>(tokens * w.hidden);
    const Status s = cuda::launch(ctx, retaining_hidden<retaining_threads>, {cuda::covering(tokens, retaining_tokens), cuda::covering(w.hidden, cuda::warp_lanes)},
                                  retaining_threads, sizeof(RetainingShared), w, act, queries, keys, values, hidden);
    if (s != Status::ok) return s;
    return cuda::launch(ctx, retaining_scores<retaining_threads>, {tokens}, retaining_threads, 0, w, static_cast<const float*>(hidden), out);
  }
};

}  // namespace kvcondense::prim
