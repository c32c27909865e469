#pragma once

#include <cmath>
#include <span>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/token_numbers.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int token_threads = 128;

struct TokenNumbersShared {
  float top[token_threads / cuda::warp_lanes];
};

/// A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) token_numbers(TensorView<const float, 2> numbers, float scale, index_t back, MissingNumber missing, RaggedView<float> out) {
  TokenNumbersShared& shared = cuda::shared_as<TokenNumbersShared>();
  const index_t head = blockIdx.x, row = numbers.extent[0] == 1 ? 0 : head, tokens = numbers.extent[1];
  float stand_in = 0.0f;
  if (missing == MissingNumber::largest) {
    // The largest of numbers that are NaN until there is one.
    const auto larger = [](float a, float b) { return b > a || a != a ? b : a; };
    stand_in = NAN;
    for (index_t t = threadIdx.x; t < tokens; t += Threads) stand_in = larger(stand_in, numbers(row, t));
    stand_in = cuda::warp_reduce(stand_in, larger);
    if (cuda::lane_of_warp() == 0) shared.top[cuda::warp_of_block()] = stand_in;
    __syncthreads();
    for (int w = 0; w < Threads / cuda::warp_lanes; ++w) stand_in = larger(stand_in, shared.top[w]);
    if (stand_in != stand_in) stand_in = 0.0f;
  }
  const index_t first = out.length(head) - tokens - back;
  for (index_t t = (first < 0 ? -first : 0) + threadIdx.x; t < tokens; t += Threads) {
    const float number = numbers(row, t), x = number != number && missing == MissingNumber::largest ? stand_in : number;
    out.row(head)[first + t] = x != x ? x : scale * x;
  }
}

template <int Threads>
__global__ void __launch_bounds__(Threads) token_classes(const TokenClass* classes, index_t tokens, RaggedView<float> out) {
  const index_t head = blockIdx.x, first = out.length(head) - tokens;
  for (index_t t = (first < 0 ? -first : 0) + threadIdx.x; t < tokens; t += Threads) out.row(head)[first + t] = static_cast<float>(classes[t]);
}

template <int Threads>
__global__ void __launch_bounds__(Threads) extend_numbers(index_t tokens, RaggedView<float> out) {
  const index_t head = blockIdx.x, n = out.length(head), first = n - tokens;
  if (first <= 0) return;
  const float x = out.row(head)[first - 1];
  for (index_t j = first + threadIdx.x; j < n; j += Threads) out.row(head)[j] = x;
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's. Numbers and classes lie on the device.
template <>
struct TokenNumbers<Cuda> {
  static Status write(Context<Cuda>& ctx, TensorView<const float, 2> numbers, float scale, index_t back, MissingNumber missing, RaggedView<float> out) {
    using namespace cuda_kernels;
    if (numbers.extent[0] != 1 && numbers.extent[0] != out.heads) return Status::shape_mismatch;
    return cuda::launch(ctx, token_numbers<token_threads>, {out.heads}, token_threads, sizeof(TokenNumbersShared), numbers, scale, back, missing, out);
  }
  static Status write(Context<Cuda>& ctx, std::span<const TokenClass> classes, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, token_classes<token_threads>, {out.heads}, token_threads, 0, classes.data(), static_cast<index_t>(classes.size()), out);
  }
  static Status extend(Context<Cuda>& ctx, index_t tokens, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, extend_numbers<token_threads>, {out.heads}, token_threads, 0, tokens, out);
  }
};

}  // namespace kvcondense::prim
