#pragma once

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/head_mix.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int mix_threads = static_cast<int>(max_head_dim), mix_tokens = 8;

/// The heads of `rows` that make a head of the output, and their slices.
struct MixHeads {
  index_t members;  ///< neighbours whose products are added
  index_t each;     ///< heads of the output that share a slice; 0: every one has its own
};

using MixTile = float[mix_tokens][max_head_dim];

/// A block some tokens of a head, a thread a number of the output, so that a matrix is read once for them; rows pass through shared memory.
/// Back: a thread's numbers of the matrix lie side by side. Grid: tiles of tokens, heads of the output.
template <bool Back>
__global__ void __launch_bounds__(mix_threads, 2) mix_heads(TensorView<const float, 3> rows, HeadMix mix, MixHeads heads, TensorView<float, 3> out) {
  MixTile& tile = cuda::shared_as<MixTile>();
  const index_t first = static_cast<index_t>(blockIdx.x) * mix_tokens, h = blockIdx.y, c = threadIdx.x, dim = rows.extent[2];
  const int count = out.extent[1] - first < mix_tokens ? static_cast<int>(out.extent[1] - first) : mix_tokens;
  float sum[mix_tokens] = {};
  for (index_t i = 0; i < heads.members; ++i) {
    __syncthreads();
    for (int t = 0; t < mix_tokens && c < dim; ++t) tile[t][c] = t < count ? rows(h * heads.members + i, first + t, c) : 0.0f;
    __syncthreads();
    const index_t member = heads.each > 0 ? h / heads.each : h * mix.share + i;
    const float* slice = mix.slice(member / mix.share, member % mix.share) + (Back ? c * mix.stride : c);
    for (index_t d = 0; d < dim && c < out.extent[2]; ++d) {
      const float x = slice[Back ? d : d * mix.stride];
#pragma unroll
      for (int t = 0; t < mix_tokens; ++t) sum[t] += tile[t][d] * x;
    }
  }
  if (c >= out.extent[2]) return;
#pragma unroll
  for (int t = 0; t < mix_tokens; ++t)
    if (t < count) out(h, first + t, c) = sum[t];
}

}  // namespace cuda_kernels

/// Sums in the CPU's order; the device joins product and sum in one rounding. Rows have at most 256 numbers.
template <>
struct HeadMixing<Cuda> {
  static Status join(Context<Cuda>& ctx, TensorView<const float, 3> rows, const HeadMix& mix, TensorView<float, 3> out) {
    if (!fits(rows, out, out.extent[0] * mix.share, mix.dim, mix.columns)) return Status::shape_mismatch;
    return run<false>(ctx, rows, mix, {mix.share, 0}, out);
  }
  static Status map(Context<Cuda>& ctx, TensorView<const float, 3> rows, const HeadMix& mix, index_t groups, TensorView<float, 3> out) {
    if (!fits(rows, out, out.extent[0], mix.dim, mix.columns) || !members(out.extent[0], mix, groups)) return Status::shape_mismatch;
    return run<false>(ctx, rows, mix, {1, out.extent[0] / (groups * mix.share)}, out);
  }
  static Status back(Context<Cuda>& ctx, TensorView<const float, 3> rows, const HeadMix& mix, index_t groups, TensorView<float, 3> out) {
    if (!fits(rows, out, out.extent[0], mix.columns, mix.dim) || !members(out.extent[0], mix, groups)) return Status::shape_mismatch;
    return run<true>(ctx, rows, mix, {1, out.extent[0] / (groups * mix.share)}, out);
  }

 private:
  static bool fits(const TensorView<const float, 3>& rows, const TensorView<float, 3>& out, index_t heads, index_t from, index_t to) {
    return rows.extent[0] == heads && rows.extent[1] == out.extent[1] && rows.extent[2] == from && out.extent[2] == to && to <= max_head_dim &&
           from <= max_head_dim;
  }
  static bool members(index_t heads, const HeadMix& mix, index_t groups) { return groups > 0 && heads % (groups * mix.share) == 0; }
  template <bool Back>
  static Status run(Context<Cuda>& ctx, const TensorView<const float, 3>& rows, const HeadMix& mix, const cuda_kernels::MixHeads& heads,
                    const TensorView<float, 3>& out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, mix_heads<Back>, {cuda::covering(out.extent[1], mix_tokens), out.extent[0]}, mix_threads, sizeof(MixTile), rows, mix,
                        heads, out);
  }
};

}  // namespace kvcondense::prim
