#pragma once

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/keep_rows.hpp>

// What a cache of exact rows keeps per slot: how new tokens enter its pages, and its numbers per slot, which lie with
// room to grow while words want them one head behind the other.

namespace kvcondense::prim {

/// Numbers of the slots of a head, `room` apart.
template <class T>
struct HeadNumbers {
  T* data = nullptr;
  index_t room = 0;

  KVCONDENSE_HD T* row(index_t head) const { return data + head * room; }
};

namespace cuda_kernels {

inline constexpr int append_threads = 128, append_warps = append_threads / cuda::warp_lanes;

/// Whether a stored number is surely finite; a hair below where rounding makes it Inf it is counted as one that is not.
__device__ inline bool can_store(DType type, float x) { return fabsf(x) <= (type == DType::f16 ? 65519.0f : 3.38e38f); }

/// The newest slots of every head become these rows: a warp a slot. Grid: blocks of slots, heads.
template <class T>
__global__ void __launch_bounds__(append_threads) append_head_rows(ExactRows codec, PageTable table, const index_t* slots, TensorView<const T, 3> rows,
                                                                  index_t* repaired) {
  const index_t head = blockIdx.y, tokens = rows.extent[1];
  const index_t t = static_cast<index_t>(blockIdx.x) * append_warps + cuda::warp_of_block();
  if (t >= tokens) return;
  const index_t slot = slots[head] - tokens + t;
  std::byte* at = table.pages[table.offset[head] + slot / table.page_slots];
  const RowPage<ExactRows> page(codec, at, static_cast<int>(table.page_slots), static_cast<int>(table.dim));
  int bad = 0;
  for (int c = cuda::lane_of_warp(); c < page.dim; c += cuda::warp_lanes) {
    const float x = static_cast<float>(rows(head, t, static_cast<index_t>(c)));
    bad += static_cast<int>(!can_store(codec.dtype, x));
    write_number(codec.dtype, page.row(static_cast<int>(slot % table.page_slots)), c, x);
  }
  bad = cuda::warp_sum(bad);
  if (cuda::lane_of_warp() == 0) add_repaired(repaired, bad);
}

/// out[h] = the head's numbers, but for the last `fresh`: these are first, first + step, ... Grid: blocks, heads.
template <class T, int Threads>
__global__ void __launch_bounds__(Threads) read_head_numbers(HeadNumbers<const T> from, index_t fresh, T first, T step, RaggedView<T> out) {
  const index_t head = blockIdx.y, n = out.length(head), old = n - fresh;
  for (index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; i < n; i += static_cast<index_t>(gridDim.x) * Threads)
    out.row(head)[i] = i < old ? from.row(head)[i] : first + static_cast<T>(i - old) * step;
}

/// The head's numbers become those of the kept slots; keep.data null: of the first. Grid: blocks, heads.
template <class T, int Threads>
__global__ void __launch_bounds__(Threads) write_head_numbers(RaggedView<const T> from, RaggedView<const std::int32_t> keep, const index_t* count,
                                                              HeadNumbers<T> to) {
  const index_t head = blockIdx.y, n = count[head];
  for (index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; i < n; i += static_cast<index_t>(gridDim.x) * Threads)
    to.row(head)[i] = from.row(head)[keep.data == nullptr ? i : keep.row(head)[i]];
}

}  // namespace cuda_kernels

/// Pages, tables, lengths and numbers lie on the device.
struct HeadSlots {
  /// New rows behind the old ones. `slots` counts them already, and the pages have room for them.
  ///
  /// Numbers  as PageCodec<Cuda, ExactRows>::encode; what the stored type cannot hold is stored as Inf or NaN and added to
  ///          `repaired`.
  template <class T>
  static Status append(Context<Cuda>& ctx, const ExactRows& codec, const PageTable& table, const index_t* slots, TensorView<const T, 3> rows,
                       index_t* repaired) {
    using namespace cuda_kernels;
    if (rows.extent[0] != table.heads || rows.extent[2] != table.dim) return Status::shape_mismatch;
    return cuda::launch(ctx, append_head_rows<T>, {cuda::covering(rows.extent[1], append_warps), table.heads}, append_threads, 0, codec, table, slots,
                        rows, repaired);
  }
  /// Numbers of all slots as words take them; those of the last `fresh` slots are first, first + step, ...
  template <class T>
  static Status read(Context<Cuda>& ctx, HeadNumbers<const T> from, index_t fresh, T first, T step, RaggedView<T> out) {
    return cuda::launch(ctx, cuda_kernels::read_head_numbers<T, 256>, {blocks, out.heads}, 256, 0, from, fresh, first, step, out);
  }
  /// Back again, those of kept slots alone; keep.data null: of the first `count`.
  template <class T>
  static Status write(Context<Cuda>& ctx, RaggedView<const T> from, RaggedView<const std::int32_t> keep, const index_t* count, HeadNumbers<T> to) {
    return cuda::launch(ctx, cuda_kernels::write_head_numbers<T, 256>, {blocks, from.heads}, 256, 0, from, keep, count, to);
  }

 private:
  static constexpr index_t blocks = 16;  ///< of a head; lengths are known to the device only, so they stride
};

}  // namespace kvcondense::prim
