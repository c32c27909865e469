#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/token_surprise.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int surprise_threads = 256;

/// A block a token.
template <int Threads>
__global__ void __launch_bounds__(Threads) token_surprise(TensorView<const float, 2> logits, const std::int32_t* tokens, SurpriseOf which, float* out) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<float, Threads>>();
  const index_t i = blockIdx.x, row = i - 1, words = logits.extent[1];
  const index_t asked = i == 0 ? -1 : tokens[which == SurpriseOf::this_token ? i : row];
  if (asked < 0 || asked >= words) {
    if (threadIdx.x == 0) out[i] = NAN;
    return;
  }
  float top = -INFINITY, sum = 0.0f;
  for (index_t w = threadIdx.x; w < words; w += Threads) top = logits(row, w) > top ? logits(row, w) : top;
  top = cuda::block_reduce(top, [](float a, float b) { return a > b ? a : b; }, scratch);
  for (index_t w = threadIdx.x; w < words; w += Threads) sum += expf(logits(row, w) - top);
  sum = cuda::block_sum<float, Threads>(sum, scratch);
  if (threadIdx.x == 0) out[i] = logf(sum) + top - logits(row, asked);
}

}  // namespace cuda_kernels

/// Logits, tokens and out lie on the device, so a token that the vocabulary does not have makes NaN instead of a Status.
template <>
struct TokenSurprise<Cuda> {
  static Status run(Context<Cuda>& ctx, TensorView<const float, 2> logits, std::span<const std::int32_t> tokens, SurpriseOf which, std::span<float> out) {
    using namespace cuda_kernels;
    const auto n = static_cast<index_t>(tokens.size());
    if (logits.extent[0] != n || out.size() != tokens.size()) return Status::shape_mismatch;
    return cuda::launch(ctx, token_surprise<surprise_threads>, {n}, surprise_threads, sizeof(cuda::BlockScratch<float, surprise_threads>), logits,
                        tokens.data(), which, out.data());
  }
};

}  // namespace kvcondense::prim
