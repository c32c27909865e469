#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/unit_fold.hpp>

// What is known of units of slots, kept beside the pages of a cache.

namespace kvcondense::prim {

/// What a row of an index is.
enum class IndexRule : std::uint8_t {
  bounds,  ///< the largest and the smallest number of every channel, rounded outwards: a row in each plane
  mean,    ///< the mean key
  spread,  ///< the mean key, and in the second plane the smallest cosine between it and a key: a float
  coordinates,  ///< a key's coordinates in a basis of its head; a unit is a slot
  last,         ///< the key of the last slot, of a unit that is full; else 0
};

/// The index of a layer on the device. Row u of a head is made of slots [origin + u * slots, origin + (u + 1) * slots).
struct UnitPlanes {
  std::byte* plane[2] = {nullptr, nullptr};  ///< [heads][room] bytes each
  index_t room[2] = {0, 0};
  DType dtype = DType::f16;  ///< of the numbers of a row
  index_t slots = 1, origin = 0;
  int width = 0;                 ///< numbers of a row
  const float* basis = nullptr;  ///< IndexRule::coordinates: [heads * head_dim, columns], the first `width` columns count
  index_t columns = 0;
  const float* metric = nullptr;  ///< of codes, [heads * head_dim, head_dim]: distances are those of rows times it; null: the identity
  const float* found = nullptr;  ///< [heads][found_room]: what a prompt or its model taught, or null; IndexRule::coordinates: which columns count
  index_t found_room = 0;

  /// IndexRule::coordinates. What a file says may be no column.
  KVCONDENSE_HD index_t column(index_t head, index_t i) const {
    if (found == nullptr) return i;
    const float c = found[head * found_room + i], last = static_cast<float>(columns - 1);
    return static_cast<index_t>(c < 0.0f ? 0.0f : c < last ? c : last);
  }
  KVCONDENSE_HD std::byte* row(int which, index_t head, index_t u) const {
    return plane[which] + head * room[which] + u * width * static_cast<index_t>(size_of(dtype));
  }
  /// IndexRule::spread.
  KVCONDENSE_HD float* spread(index_t head, index_t u) const { return reinterpret_cast<float*>(plane[1] + head * room[1]) + u; }
};

namespace cuda_kernels {

inline constexpr int index_threads = 128, index_warps = index_threads / cuda::warp_lanes;
inline constexpr int index_tile = 16;  ///< slots that a block loads together
inline constexpr int index_columns = static_cast<int>(max_head_dim) / index_threads;

struct IndexShared {
  float row[index_tile][max_head_dim];
};

/// The slots of a block's unit, none where its row stays as it is.
struct UnitSlots {
  index_t head, u, begin, end;

  __device__ UnitSlots(const UnitPlanes& planes, const index_t* from, const index_t* known, index_t base)
      : head(blockIdx.y), u(base + blockIdx.x), begin(planes.origin + u * planes.slots), end(begin + planes.slots < known[head] ? begin + planes.slots : known[head]) {
    const index_t changed = from[head] - planes.origin;
    if (u < (changed > 0 ? changed : 0) / planes.slots) end = begin;
  }
  __device__ bool empty() const { return begin >= end; }
};

/// Rows of units from the first one on whose slots have changed, `from` per head. A block a unit, threads its channels: slots follow one
/// another as on the CPU. Grid: units from `base` on, heads.
template <IndexRule Rule>
__global__ void __launch_bounds__(index_threads, 4) index_units(SlotRows<Cuda> keys, UnitPlanes planes, const index_t* from, const index_t* known, index_t base) {
  IndexShared& shared = cuda::shared_as<IndexShared>();
  const UnitSlots unit_slots(planes, from, known, base);
  if (unit_slots.empty()) return;  // the same in all threads
  const index_t head = unit_slots.head, u = unit_slots.u, begin = unit_slots.begin, end = unit_slots.end;
  const int dim = static_cast<int>(keys.dim()), thread = static_cast<int>(threadIdx.x);
  float high[index_columns], low[index_columns];
#pragma unroll
  for (int k = 0; k < index_columns; ++k) high[k] = Rule == IndexRule::mean ? 0.0f : -INFINITY, low[k] = INFINITY;
  for (index_t at = begin; at < end; at += index_tile) {
    const int count = static_cast<int>(end - at < index_tile ? end - at : index_tile);
    __syncthreads();  // the tile before has been read
    for (int i = cuda::warp_of_block(); i < count; i += index_warps) keys.load(keys.locate(head, at + i), shared.row[i]);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < index_columns; ++k) {
      const int c = thread + k * index_threads;
      if (c >= dim) continue;
      for (int i = 0; i < count; ++i) {
        const float x = shared.row[i][c];
        if constexpr (Rule == IndexRule::mean) high[k] += x;
        else high[k] = x > high[k] ? x : high[k], low[k] = x < low[k] ? x : low[k];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < index_columns; ++k) {
    const int c = thread + k * index_threads;
    if (c >= dim) continue;
    if constexpr (Rule == IndexRule::mean) {
      write_number(planes.dtype, planes.row(0, head, u), c, high[k] / static_cast<float>(end - begin));
    } else {
      write_number(planes.dtype, planes.row(0, head, u), c, stored_above(planes.dtype, high[k]));
      write_number(planes.dtype, planes.row(1, head, u), c, stored_below(planes.dtype, low[k]));
    }
  }
}

template <int Threads>
struct SpreadShared {
  cuda::BlockScratch<float, Threads> scratch;
  float row[Threads / cuda::warp_lanes][max_head_dim];
};

/// Behind the mean keys: a warp a slot. Grid: as index_units.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) spread_units(SlotRows<Cuda> keys, UnitPlanes planes, const index_t* from, const index_t* known, index_t base) {
  auto& shared = cuda::shared_as<SpreadShared<Threads>>();
  const UnitSlots s(planes, from, known, base);
  if (s.empty()) return;  // the same in all threads
  const std::byte* const mean = planes.row(0, s.head, s.u);
  float length = 0.0f, smallest = 1.0f;
  for (int c = cuda::lane_of_warp(); c < planes.width; c += cuda::warp_lanes) length += read_number(planes.dtype, mean, c) * read_number(planes.dtype, mean, c);
  length = cuda::warp_sum(length);
  float* const row = shared.row[cuda::warp_of_block()];
  for (index_t i = s.begin + cuda::warp_of_block(); i < s.end; i += shared.scratch.warps) {
    keys.load(keys.locate(s.head, i), row);
    float square = 0.0f, dot = 0.0f;
    for (int c = cuda::lane_of_warp(); c < planes.width; c += cuda::warp_lanes) {
      const float x = row[c];
      square += x * x, dot += x * read_number(planes.dtype, mean, c);
    }
    const float norm = sqrtf(cuda::warp_sum(square) * length), product = cuda::warp_sum(dot);
    const float cosine = norm > 0.0f ? product / norm : 0.0f;
    if (cosine < smallest) smallest = cosine;
  }
  smallest = cuda::block_reduce(smallest, [](float a, float b) { return b < a ? b : a; }, shared.scratch);
  if (threadIdx.x == 0) *planes.spread(s.head, s.u) = smallest;
}

struct BasisShared {
  float row[max_head_dim];
};

/// A block a unit. Grid: as index_units.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) index_last(SlotRows<Cuda> keys, UnitPlanes planes, const index_t* from, const index_t* known, index_t base) {
  BasisShared& shared = cuda::shared_as<BasisShared>();
  const UnitSlots s(planes, from, known, base);
  if (s.empty()) return;  // the same in all threads
  const bool full = s.end - s.begin == planes.slots;
  if (full && cuda::warp_of_block() == 0) keys.load(keys.locate(s.head, s.end - 1), shared.row);
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < planes.width; c += Threads) write_number(planes.dtype, planes.row(0, s.head, s.u), c, full ? shared.row[c] : 0.0f);
}

/// Threads are coordinates, products and sums in the CPU's order. Grid: as index_units.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) index_coordinates(SlotRows<Cuda> keys, UnitPlanes planes, const index_t* from, const index_t* known, index_t base) {
  BasisShared& shared = cuda::shared_as<BasisShared>();
  const UnitSlots s(planes, from, known, base);
  if (s.empty()) return;  // the same in all threads
  const int dim = static_cast<int>(keys.dim());
  if (cuda::warp_of_block() == 0) keys.load(keys.locate(s.head, s.begin), shared.row);
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < planes.width; c += Threads) {
    const float* e = planes.basis + s.head * dim * planes.columns + planes.column(s.head, c);
    float sum = 0.0f;
    for (int d = 0; d < dim; ++d) sum = __fadd_rn(sum, __fmul_rn(shared.row[d], e[d * planes.columns]));
    write_number(planes.dtype, planes.row(0, s.head, s.u), c, sum);
  }
}

/// A thread a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) slots_below(HeadNumbers<const std::int32_t> tokens, const index_t* known, index_t end, index_t heads, index_t* out) {
  const index_t head = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (head >= heads) return;
  index_t low = 0, high = known[head];
  while (low < high) {
    const index_t middle = low + (high - low) / 2;
    if (tokens.row(head)[middle] < end) low = middle + 1;
    else high = middle;
  }
  out[head] = low;
}

/// The first slot of each head that is not where it was, among kept ones: what comes before it stays as it is. `from` holds a bound
/// already. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) first_moved(RaggedView<const std::int32_t> keep, const index_t* count, index_t* from) {
  cuda::BlockScratch<index_t, Threads>& scratch = cuda::shared_as<cuda::BlockScratch<index_t, Threads>>();
  const index_t head = blockIdx.x, n = count[head];
  index_t first = n;
  for (index_t i = threadIdx.x; i < n; i += Threads)
    if (keep.row(head)[i] != i) {
      first = i;
      break;
    }
  first = cuda::block_reduce(first, [](index_t a, index_t b) { return a < b ? a : b; }, scratch);
  if (threadIdx.x == 0 && first < from[head]) from[head] = first;
}

}  // namespace cuda_kernels

/// The index of all heads of a layer, made of stored keys.
///
/// Needs    all pointers are the device's; `from` and `known` may lie in steering memory.
/// Cost     reads the keys of the units from the first changed slot on.
/// Numbers  bit for bit the CPU's, coordinates where its compiler leaves products and sums apart (-ffp-contract=off, which the library's targets ask
///          for); smallest cosines to 2e-6.
struct UnitIndex {
  template <IndexRule Rule>
  static Status build(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const UnitPlanes& planes, const index_t* from, const index_t* known, index_t first, index_t last) {
    using namespace cuda_kernels;
    if (first >= last) return Status::ok;
    const cuda::Grid grid{last - first, keys.heads()};
    const auto start = [&](auto kernel, std::size_t shared) { return cuda::launch(ctx, kernel, grid, index_threads, shared, keys, planes, from, known, first); };
    if constexpr (Rule == IndexRule::coordinates) return start(index_coordinates<index_threads>, sizeof(BasisShared));
    else if constexpr (Rule == IndexRule::last) return start(index_last<index_threads>, sizeof(BasisShared));
    else if constexpr (Rule == IndexRule::spread) {
      const Status s = start(index_units<IndexRule::mean>, sizeof(IndexShared));
      return s == Status::ok ? start(spread_units<index_threads>, sizeof(SpreadShared<index_threads>)) : s;
    } else return start(index_units<Rule>, sizeof(IndexShared));
  }
  /// out[head] = how many of the first known[head] slots hold tokens before the `end`th; slots are in the order of tokens.
  static Status below(Context<Cuda>& ctx, HeadNumbers<const std::int32_t> tokens, const index_t* known, index_t end, index_t heads, index_t* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, slots_below<index_threads>, {cuda::covering(heads, index_threads)}, index_threads, 0, tokens, known, end, heads, out);
  }
  /// from = min(from, the first slot that leaves or moves); `keep` as the cache keeps.
  static Status moved(Context<Cuda>& ctx, RaggedView<const std::int32_t> keep, const index_t* count, index_t* from) {
    return cuda::launch(ctx, cuda_kernels::first_moved<128>, {keep.heads}, 128, sizeof(cuda::BlockScratch<index_t, 128>), keep, count, from);
  }
};

}  // namespace kvcondense::prim
