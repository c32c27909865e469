#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/unit_index.cuh>
#include <kvcondense/backend/cuda/unit_scores.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/slot_runs.hpp>

// What slots drew of the attention of each query head of their group, which steps add up, and an index of the keys that drew most.

namespace kvcondense::prim {

/// `group` numbers per slot: of a head at row(head)[slot * group + member].
struct DrawnNumbers {
  HeadNumbers<float> sums{};
  index_t group = 1;
};

namespace cuda_kernels {

/// to = what slots drew before, nothing of the newest `fresh`, and `more` [group, slots] of a head, or null, where it is a number. Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) add_drawn(DrawnNumbers drawn, index_t fresh, const float* more, RaggedView<float> to) {
  const index_t head = blockIdx.y, slots = to.length(head), group = drawn.group, n = slots * group, begin = to.offset[head] * group;
  for (index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; i < n; i += static_cast<index_t>(gridDim.x) * Threads) {
    const index_t slot = i / group, member = i % group;
    const float old = slot < slots - fresh ? drawn.sums.row(head)[i] : 0.0f, x = more == nullptr ? 0.0f : more[begin + member * slots + slot];
    to.data[begin + i] = old + (fabsf(x) < INFINITY ? x : 0.0f);  // a query of NaN gives nothing
  }
}

/// The numbers of listed slots, or of all, to where they are kept. Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) put_drawn(RaggedView<const float> from, const std::int32_t* list, const index_t* count, DrawnNumbers drawn) {
  const index_t head = blockIdx.y, group = drawn.group, n = (list == nullptr ? from.length(head) : count[head]) * group, begin = from.offset[head];
  for (index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; i < n; i += static_cast<index_t>(gridDim.x) * Threads) {
    const index_t slot = list == nullptr ? i / group : list[begin + i / group];
    drawn.sums.row(head)[i] = from.data[begin * group + slot * group + i % group];
  }
}

inline constexpr int most_representatives = 64;

struct RepresentativeShared {
  std::int32_t best[most_representatives];
  float row[index_tile][max_head_dim];
};

/// Per member of the group the mean key of the `count` slots of a unit that drew most, of equal ones the first; added up from the largest down. A block
/// a unit. Grid: as index_units.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) index_representatives(SlotRows<Cuda> keys, UnitPlanes planes, DrawnNumbers drawn, int count, const index_t* from,
                                                                    const index_t* known, index_t base) {
  RepresentativeShared& shared = cuda::shared_as<RepresentativeShared>();
  const UnitSlots s(planes, from, known, base);
  if (s.empty()) return;  // the same in all threads
  const int dim = static_cast<int>(keys.dim()), slots = static_cast<int>(s.end - s.begin), n = count < slots ? count : slots;
  for (index_t member = 0; member < drawn.group; ++member) {
    const float* const drew = drawn.sums.row(s.head) + s.begin * drawn.group + member;
    __syncthreads();  // the member before is done
    for (int i = static_cast<int>(threadIdx.x); i < slots; i += Threads) {
      const float x = drew[i * drawn.group];
      int rank = 0;
      for (int j = 0; j < slots && rank < n; ++j) rank += drew[j * drawn.group] > x || (drew[j * drawn.group] == x && j < i);
      if (rank < n) shared.best[rank] = i;
    }
    float sum[index_columns] = {};
    for (int first = 0; first < n; first += index_tile) {
      const int rows = n - first < index_tile ? n - first : index_tile;
      __syncthreads();  // they are found, the tile before is read
      for (int i = cuda::warp_of_block(); i < rows; i += index_warps) keys.load(keys.locate(s.head, s.begin + shared.best[first + i]), shared.row[i]);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < index_columns; ++k) {
        const int c = static_cast<int>(threadIdx.x) + k * Threads;
        for (int i = 0; c < dim && i < rows; ++i) sum[k] += shared.row[i][c];
      }
    }
#pragma unroll
    for (int k = 0; k < index_columns; ++k) {
      const int c = static_cast<int>(threadIdx.x) + k * Threads;
      if (c < dim) write_number(planes.dtype, planes.row(0, s.head, s.u), static_cast<int>(member) * dim + c, sum[k] / static_cast<float>(n));
    }
  }
}

/// Scores of candidates by the rows of the query's own member: a warp a unit. Grid: tiles of candidates, rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) score_members(UnitPlanes planes, UnitScores scores, const float* queries, int dim) {
  const index_t row = blockIdx.y, head = row / scores.per_head, member = row % scores.per_head;
  const index_t u = static_cast<index_t>(blockIdx.x) * (Threads / cuda::warp_lanes) + cuda::warp_of_block();
  if (u >= scores.out.length(row)) return;  // the same in a warp
  const std::byte* const numbers = planes.row(0, head, scores.first[head] + u);
  float dot = 0.0f;
  for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) dot += queries[row * dim + c] * read_number(planes.dtype, numbers, static_cast<int>(member) * dim + c);
  dot = cuda::warp_sum(dot);
  if (cuda::lane_of_warp() == 0) scores.out.row(row)[u] = dot;
}

/// Numbers of candidates as they are, one per slot. Grid: blocks, rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) copy_drawn(HeadNumbers<const float> drawn, UnitScores scores) {
  const index_t row = blockIdx.y, head = row / scores.per_head, n = scores.out.length(row);
  const float* const from = drawn.row(head) + scores.first[head];
  float* const to = scores.out.row(row);
  for (index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; i < n; i += static_cast<index_t>(gridDim.x) * Threads) to[i] = from[i];
}

}  // namespace cuda_kernels

/// Numbers  sums in float32; rows of the index bit for bit the CPU's where the same slots drew most.
struct DrawnSlots {
  /// Slots draw `more`, the newest `fresh` of them nothing before, and those that stay are kept: `list` and `count` name them, as long as `scratch`, a null list keeps all. `scratch`: `group` times as
  /// many numbers as there are slots.
  static Status step(Context<Cuda>& ctx, const DrawnNumbers& drawn, index_t fresh, const float* more, RaggedView<float> scratch, const std::int32_t* list,
                     const index_t* count) {
    using namespace cuda_kernels;
    const Status s = cuda::launch(ctx, add_drawn<256>, {16, scratch.heads}, 256, 0, drawn, fresh, more, scratch);
    return s == Status::ok ? cuda::launch(ctx, put_drawn<256>, {16, scratch.heads}, 256, 0, RaggedView<const float>(scratch), list, count, drawn) : s;
  }
  /// As UnitIndex::build, rows of `group` times a key's numbers.
  static Status build(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const UnitPlanes& planes, const DrawnNumbers& drawn, index_t representatives, const index_t* from,
                      const index_t* known, index_t first, index_t last) {
    using namespace cuda_kernels;
    if (first >= last) return Status::ok;
    if (representatives < 1 || representatives > most_representatives) return Status::invalid_argument;
    return cuda::launch(ctx, index_representatives<index_threads>, {last - first, keys.heads()}, index_threads, sizeof(RepresentativeShared), keys, planes, drawn,
                        static_cast<int>(representatives), from, known, first);
  }
  /// Scores are what slots drew. `most`: no head has more candidates.
  static Status copy(Context<Cuda>& ctx, const HeadNumbers<const float>& drawn, const UnitScores& scores, index_t most) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, copy_drawn<256>, {cuda::covering(most, 1024), scores.out.heads}, 256, 0, drawn, scores);
  }
  /// `most`: no head has more candidates.
  static Status score(Context<Cuda>& ctx, const UnitPlanes& planes, const UnitScores& scores, const float* queries, index_t dim, index_t most) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, score_members<index_threads>, {cuda::covering(most, index_warps), scores.out.heads}, index_threads, 0, planes, scores, queries,
                        static_cast<int>(dim));
  }
};

}  // namespace kvcondense::prim
