#pragma once

#include <cstddef>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/k_means.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int code_threads = 256;
inline constexpr index_t code_blocks = 1024;  ///< of a row of tables; beyond, blocks stride

/// Of one row of codes: what a table says of them, parts in order, or how many are the wanted ones.
template <bool Match>
__device__ inline float score_of_codes(const std::byte* at, index_t bytes, index_t parts, index_t entries, const float* table) {
  float x = 0.0f;
  for (index_t p = 0; p < parts; ++p, at += bytes) {
    const index_t code = static_cast<index_t>(at[0]) | (bytes == 1 ? 0 : static_cast<index_t>(at[1]) << 8);
    if constexpr (Match) x += static_cast<float>(code) == table[p] ? 1.0f : 0.0f;
    else x = p == 0 ? table[code] : x + table[p * entries + code];
  }
  return x;
}

/// A thread a row of codes, for one row of tables or of wanted codes; blocks stride. Grid: rows of tables, blocks of codes.
template <bool Match>
__global__ void __launch_bounds__(code_threads) score_codes(const std::byte* codes, index_t bytes, index_t parts, index_t entries, index_t count,
                                                            RowBlock<const float> tables, RowBlock<float> out) {
  const index_t r = blockIdx.x;
  const float* table = tables.data + r * tables.step;
  for (index_t i = static_cast<index_t>(blockIdx.y) * code_threads + threadIdx.x; i < count; i += static_cast<index_t>(gridDim.y) * code_threads)
    out.data[r * out.step + i] = score_of_codes<Match>(codes + i * parts * bytes, bytes, parts, entries, table);
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's.
template <>
struct CodeScores<Cuda> {
  static Status scores(Context<Cuda>& ctx, const std::byte* codes, index_t bytes, index_t parts, index_t entries, index_t first, index_t count,
                       RowBlock<const float> tables, RowBlock<float> out) {
    if (parts == 0) count = 0;  // no sum: `out` stays as it is
    return run<false>(ctx, codes, bytes, parts, entries, first, count, tables, out);
  }
  static Status matches(Context<Cuda>& ctx, const std::byte* codes, index_t bytes, index_t parts, index_t first, index_t count, RowBlock<const float> wanted,
                        RowBlock<float> out) {
    return run<true>(ctx, codes, bytes, parts, 0, first, count, wanted, out);
  }

 private:
  template <bool Match>
  static Status run(Context<Cuda>& ctx, const std::byte* codes, index_t bytes, index_t parts, index_t entries, index_t first, index_t count,
                    const RowBlock<const float>& tables, const RowBlock<float>& out) {
    using namespace cuda_kernels;
    if (bytes < 1 || bytes > 2 || first < 0 || count < 0) return Status::invalid_argument;
    if (out.rows != tables.rows) return Status::shape_mismatch;
    const index_t blocks = cuda::covering(count, code_threads);
    return cuda::launch(ctx, score_codes<Match>, {tables.rows, blocks < code_blocks ? blocks : code_blocks}, code_threads, 0, codes + first * parts * bytes,
                        bytes, parts, entries, count, tables, out);
  }
};

}  // namespace kvcondense::prim
