#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/mini_float.hpp>

// A matrix as a product of two thin ones by a block of threads: x ~ a^t b, x [n][dim], a [rank][n], b [rank][dim], all in shared memory. Sums are added in the
// order of the host's portable kernels, so that both make the same bits; but for lengths, which are sums of doubles in another order, as near to the middle
// between two floats as rounding of doubles.

namespace kvcondense::prim::cuda_kernels {

/// The matrix, its rows `step` apart, and its factors. `step` is an odd multiple of 4: where four lanes read a row together, eight rows meet no bank twice.
template <int Threads>
struct ThinFactors {
  float *x, *a, *b;
  int n, dim, step, rank;

  KVCONDENSE_HD static constexpr int step_for(int dim) { return ((dim + 3) / 4 | 1) * 4; }

  /// As `cpu::fit_low_rank`. `x` is used up. All threads of a block; it begins and ends with a barrier.
  __device__ void fit(int loops, cuda::BlockScratch<float, Threads>& scratch) const {
    const int thread = static_cast<int>(threadIdx.x);
    __syncthreads();
    float most = 0.0f;
    each_number([&](float& v) { most = fabsf(v) > most ? fabsf(v) : most; });
    most = cuda::block_reduce<float, Threads>(most, [](float p, float q) { return p > q ? p : q; }, scratch);
    const bool something = most > 0x1p-80f;
    const int size = something ? exponent(most) < 126 ? exponent(most) : 126 : 0;
    const float brought = power_of_two(-size);
    each_number([&](float& v) { v *= brought; });
    for (int i = thread; i < rank * n; i += Threads) a[i] = 0.0f;
    for (int i = thread; i < rank * dim; i += Threads) {
      const int j = i / dim, c = i % dim;
      b[i] = something ? static_cast<float>((3 * c + 5 * j + j / 7 * (c / 7)) % 7 + 1) / 8.0f : 0.0f;
    }
    __syncthreads();
    if (!something) return;  // the same in all threads
    for (int loop = 0; loop < loops; ++loop) {
      if (cuda::warp_of_block() == 0) orthonormalize(b, dim);
      __syncthreads();
      multiply_rows();
      __syncthreads();
      if (cuda::warp_of_block() == 0) orthonormalize(a, n);
      __syncthreads();
      for (int i = thread; i < rank * dim; i += Threads) b[i] = column_sum(a + i / dim * n, i % dim);
      __syncthreads();
    }
    for (int j = cuda::warp_of_block(); j < rank; j += Threads / cuda::warp_lanes) share_size(a + j * n, b + j * dim, size);
    __syncthreads();
  }

 private:
  /// floor(log2(v)) of a normal number above 0.
  __device__ static int exponent(float v) { return static_cast<int>(detail::bit_cast<std::uint32_t>(v) >> 23) - 127; }
  template <class F>
  __device__ void each_number(F&& f) const {
    for (int i = cuda::warp_of_block(); i < n; i += Threads / cuda::warp_lanes)
      for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) f(x[i * step + c]);
  }
  /// p . q by four lanes, each of which adds up every fourth product; in each of the four. Whole warps; `there`: whether these four have something to add.
  __device__ static float quad_dot(const float* p, const float* q, int count, bool there) {
    float sum = 0.0f;
    for (int k = cuda::lane_of_warp() % 4; there && k < count; k += 4) sum = __fadd_rn(sum, __fmul_rn(p[k], q[k]));
    sum = __fadd_rn(sum, __shfl_xor_sync(cuda::full_warp, sum, 2));
    return __fadd_rn(sum, __shfl_xor_sync(cuda::full_warp, sum, 1));
  }
  /// In every lane of a warp.
  __device__ static double length(const float* p, int count) {
    double sum = 0.0;
    for (int k = cuda::lane_of_warp(); k < count; k += cuda::warp_lanes) sum += static_cast<double>(p[k]) * static_cast<double>(p[k]);
    return sqrt(cuda::warp_sum(sum));
  }
  /// A warp. Lanes write the numbers that they read alone, but for products.
  __device__ void orthonormalize(float* rows, int count) const {
    const int lane = cuda::lane_of_warp();
    for (int j = 0; j < rank; ++j) {
      float* const p = rows + j * count;
      const double before = length(p, count);
      for (int again = 0; again < 2; ++again)
        for (int i = 0; i < j; ++i) {
          const float* const q = rows + i * count;
          __syncwarp();
          const float along = __shfl_sync(cuda::full_warp, quad_dot(p, q, count, lane < 4), 0);
          __syncwarp();
          for (int k = lane; k < count; k += cuda::warp_lanes) p[k] = __fadd_rn(p[k], -__fmul_rn(along, q[k]));
        }
      const double after = length(p, count);
      const auto scale = static_cast<float>(after > before * 1e-6 ? 1.0 / after : 0.0);
      for (int k = lane; k < count; k += cuda::warp_lanes) p[k] *= scale;
    }
  }
  /// a <- x b: four lanes a product.
  __device__ void multiply_rows() const {
    constexpr int quads = Threads / 4, of_warp = cuda::warp_lanes / 4;
    for (int first = cuda::warp_of_block() * of_warp; first < rank * n; first += quads) {
      const int at = first + cuda::lane_of_warp() / 4;
      const bool there = at < rank * n;
      const float sum = quad_dot(x + (there ? at % n : 0) * step, b + (there ? at / n : 0) * dim, dim, there);
      if (there && cuda::lane_of_warp() % 4 == 0) a[at] = sum;
    }
  }
  /// Of a column of x with weights of its rows.
  __device__ float column_sum(const float* weight, int c) const {
    float sum = 0.0f;
    for (int i = 0; i < n; ++i) sum = __fadd_rn(sum, __fmul_rn(weight[i], x[i * step + c]));
    return sum;
  }
  /// A warp. Both factors of a direction become about equally large, and their product as large as before `x` was scaled.
  __device__ void share_size(float* p, float* q, int size) const {
    const auto largest = [](const float* v, int count) {
      float most = 0.0f;
      for (int k = cuda::lane_of_warp(); k < count; k += cuda::warp_lanes) most = fabsf(v[k]) > most ? fabsf(v[k]) : most;
      return cuda::warp_max(most);
    };
    const float of_a = largest(p, n), of_b = largest(q, dim);
    const bool something = of_a > 0.0f && of_b > 0x1p-60f;
    const int up = something ? (exponent(of_b) + size - exponent(of_a)) / 2 : 0;
    const float for_a = power_of_two(up), for_b = power_of_two(size - up);
    for (int k = cuda::lane_of_warp(); k < n; k += cuda::warp_lanes) p[k] = something ? p[k] * for_a : 0.0f;
    for (int k = cuda::lane_of_warp(); k < dim; k += cuda::warp_lanes) q[k] = something ? q[k] * for_b : 0.0f;
  }
};

}  // namespace kvcondense::prim::cuda_kernels
