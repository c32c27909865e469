#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/scaled_rows.cuh>

// Factors of channels that a step finds from the rows that a head codes first.

namespace kvcondense::prim {

namespace cuda_kernels {

/// A block a head, a thread a channel. Heads that have factors keep them.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_head_scales(ChannelScale rule, int dim, float* table, index_t step, ExactRows exact, ColumnParts column, KeptSlots due) {
  const index_t head = blockIdx.x;
  float* const state = table + head * step;
  const HeadKept mine = due.of(head);
  const bool waits = state[0] == 0.0f && mine.size > 0;
  __syncthreads();  // all know before one writes it
  const int c = static_cast<int>(threadIdx.x);
  if (!waits || c >= dim) return;
  const DueRows rows{exact, column.newest, head, mine};
  float top = 0.0f;
  for (index_t i = 0; i < mine.size; ++i) {
    const float size = fabsf(rows.row(static_cast<int>(i))(c));
    if (size <= 3e38f && size > top) top = size;
  }
  const float part = 1.0f / top;
  const bool usual = part > 0.0f && part <= 3e38f;
  const float power = rule.alpha == 0.5f ? __fsqrt_rn(part) : powf(part, rule.alpha);
  const float factor = !usual ? 1.0f : power < 1.0f / most_scale ? 1.0f / most_scale : power > most_scale ? most_scale : power;
  state[c] = factor, state[dim + c] = 1.0f / factor;
}

}  // namespace cuda_kernels

struct FoundScales {
  /// What becomes codes says the factors of heads that have none; `table`: of the heads, `step` numbers apart.
  ///
  /// Numbers  as RowTransform<Cpu, ChannelScale>, bit for bit; powers of another alpha than 0.5 to the last bits.
  static Status find(Context<Cuda>& ctx, const ChannelScale& rule, float* table, index_t step, const ExactRows& exact, const ColumnParts& column, const KeptSlots& due) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, find_head_scales<channel_threads>, {column.heads()}, channel_threads, 0, rule, static_cast<int>(column.coded.dim), table, step, exact, column, due);
  }
};

}  // namespace kvcondense::prim
