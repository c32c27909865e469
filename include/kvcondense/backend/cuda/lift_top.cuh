#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/lift_top.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// A block a row: all numbers first, then the best above them.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) lift_top_row(RaggedView<const float> scores, RaggedView<const float> weights, const Ends* skip,
                                                           const index_t* first, float bias, RaggedView<float> out) {
  static_assert(Threads == winner_threads);
  WinnerShared& shared = cuda::shared_as<WinnerShared>();
  const index_t h = blockIdx.x;
  const Ends ends = skip == nullptr ? Ends{} : skip[h].within(scores.length(h));
  const index_t n = scores.length(h) - ends.size(), k = first[h] < 0 ? 0 : first[h] < n ? first[h] : n;
  const float *s = scores.row(h) + ends.prefix, *w = weights.row(h) + ends.prefix;
  float* o = out.row(h) + ends.prefix;
  const BlockCutoff cut = block_cutoff<Threads>(s, n, k, shared.cutoff);
  for (index_t j = threadIdx.x; j < n; j += Threads) o[j] = __fmul_rn(__fadd_rn(s[j], bias), w[j]);
  __syncthreads();
  block_winners(
      n, [&](index_t i) { return rank_bits(s[i]); }, cut, 0, [](index_t) { return false; },
      [&](index_t i, std::uint32_t) {
        if (s[i] == s[i]) o[i] = INFINITY;
      },
      shared);
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's.
template <>
struct LiftTop<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> scores, RaggedView<const float> weights, const Ends* skip, const index_t* first,
                    float bias, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, lift_top_row<winner_threads>, {scores.heads}, winner_threads, sizeof(WinnerShared), scores, weights, skip, first, bias, out);
  }
};

}  // namespace kvcondense::prim
