#pragma once

#include <type_traits>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/latent_rows.cuh>
#include <kvcondense/backend/cuda/mapped_rows.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/backend/cuda/scaled_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/keep_rows.hpp>

namespace kvcondense::prim {

/// Some of a head's kept slots: entries [begin, begin + count) of its list, which count from `base`. They go to the places from `to` on.
struct KeptRange {
  index_t begin = 0, count = 0, base = 0, to = 0;
};

/// The kept slots of one head, ascending.
struct HeadKept {
  const std::int32_t* list = nullptr;  ///< null: slots follow each other
  index_t size = 0, base = 0;          ///< entries of the list count from `base`; without one, slots begin there

  __device__ index_t operator[](index_t i) const { return list == nullptr ? base + i : list[i] - base; }
};

/// Which slots of every head stay. Without a list: those that `ranges` say, or the first `count`.
struct KeptSlots {
  RaggedView<const std::int32_t> list{};
  const index_t* count = nullptr;
  const KeptRange* ranges = nullptr;  ///< null: all of the list

  __device__ HeadKept of(index_t head) const {
    const KeptRange r = ranges == nullptr ? KeptRange{0, count[head], 0, 0} : ranges[head];
    if (list.data == nullptr) return {nullptr, r.count, r.begin - r.base};
    return {list.row(head) + r.begin, r.count, r.base};
  }
};

namespace cuda_kernels {

inline constexpr int keep_threads = 256;

/// A block a head. Kept slots ascend, so a slot's new place is never behind its old one: bytes are read, then, behind
/// a barrier, written, a chunk of slots at a time, and nothing is written that is still to be read.
template <class Codec>
__global__ void __launch_bounds__(keep_threads) keep_head_rows(Codec codec, PageTable table, KeptSlots keep) {
  constexpr unsigned each = 4, in_round = keep_threads * each;  // bytes of a thread, and of all, in one round
  const index_t head = blockIdx.x;
  const HeadKept kept = keep.of(head);
  const index_t n = kept.size;
  std::byte* const* pages = table.pages + table.offset[head];
  const RowPage<Codec> alike(of_head(codec, head), nullptr, static_cast<int>(table.page_slots), static_cast<int>(table.dim));  // what all pages have in common, once
  const auto slot = [&](index_t s) {  // slots are counted in 31 bits
    const auto page_slots = static_cast<unsigned>(table.page_slots), page = static_cast<unsigned>(s) / page_slots;
    RowPage<Codec> rows = alike;
    rows.data = pages[page];
    return rows.slot_bytes(static_cast<int>(static_cast<unsigned>(s) - page * page_slots));
  };
  if (n == 0) return;
  const auto size = static_cast<unsigned>(slot(0).size());
  // The first slots often stay: begin where one moves. All threads find the same.
  index_t low = 0, high = n;  // slot i is kept as i below low
  while (low < high) {
    const index_t middle = low + (high - low) / 2;
    if (kept[middle] == middle) low = middle + 1;
    else high = middle;
  }
  index_t first = low;
  unsigned into = 0;  // a round begins at byte `into` of kept slot `first`
  while (first < n) {
    std::byte value[each];
#pragma unroll
    for (unsigned k = 0; k < each; ++k) {
      const unsigned b = into + k * keep_threads + threadIdx.x;
      if (const index_t i = first + b / size; i < n) value[k] = *slot(kept[i]).at(static_cast<int>(b % size));
    }
    __syncthreads();
#pragma unroll
    for (unsigned k = 0; k < each; ++k) {
      const unsigned b = into + k * keep_threads + threadIdx.x;
      if (const index_t i = first + b / size; i < n) *slot(i).at(static_cast<int>(b % size)) = value[k];
    }
    __syncthreads();
    into += in_round;
    first += into / size, into %= size;
  }
}

inline constexpr int lane_threads = 256, lane_warps = lane_threads / cuda::warp_lanes;

struct LaneSlots {
  std::uint8_t codes[lane_warps][max_head_dim];
  std::uint32_t params[lane_warps][2 * max_head_dim];  ///< scales, then offsets, in their stored bits
};

/// The same for pages in lanes, where a byte or word has codes of several slots: a warp a slot takes codes apart and, behind
/// the barrier, puts them where they go.
template <class Codec>
__global__ void __launch_bounds__(lane_threads, 2) keep_head_lanes(Codec codec, PageTable table, KeptSlots keep) {
  LaneSlots& shared = cuda::shared_as<LaneSlots>();
  const index_t head = blockIdx.x;
  const HeadKept kept = keep.of(head);
  const int n = static_cast<int>(kept.size), lane = cuda::lane_of_warp(), warp = cuda::warp_of_block();  // slots are counted in 31 bits
  const int page_slots = static_cast<int>(table.page_slots);
  std::byte* const* pages = table.pages + table.offset[head];
  const auto page_of = [&](int s) { return RowPage<Codec>(codec, pages[s / page_slots], page_slots, static_cast<int>(table.dim)); };
  const auto param = [&](const RowPage<Codec>& page, int slot, int i) { return page.params(slot) + i * page.step() * static_cast<int>(size_of(codec.params)); };
  const int params = static_cast<int>(codec.scales(table.dim)) * (has_offset(codec.form) ? 2 : 1);
  for (int first = 0; first < n; first += lane_warps) {
    const int i = first + warp, from = i < n ? static_cast<int>(kept[i]) : i;
    const bool moves = from != i;
    if (moves) {
      const RowPage<Codec> page = page_of(from);
      const int slot = from % page_slots;
      for (int c = lane; c < page.dim; c += cuda::warp_lanes) shared.codes[warp][c] = static_cast<std::uint8_t>(page.code(slot, c));
      for (int p = lane; p < params; p += cuda::warp_lanes) {
        const std::byte* at = param(page, slot, p);
        shared.params[warp][p] = codec.params == ParamType::f32 ? *reinterpret_cast<const std::uint32_t*>(at) : *reinterpret_cast<const std::uint16_t*>(at);
      }
    }
    __syncthreads();
    if (moves) {
      const RowPage<Codec> page = page_of(i);
      const int slot = i % page_slots;
      page.write_codes(slot, shared.codes[warp], lane, cuda::warp_lanes);
      for (int p = lane; p < params; p += cuda::warp_lanes) {
        std::byte* at = param(page, slot, p);
        if (codec.params == ParamType::f32) *reinterpret_cast<std::uint32_t*>(at) = shared.params[warp][p];
        else *reinterpret_cast<std::uint16_t*>(at) = static_cast<std::uint16_t>(shared.params[warp][p]);
      }
    }
    __syncthreads();
  }
}

template <int Threads>
__global__ void __launch_bounds__(Threads) keep_head_numbers(RaggedView<const std::int32_t> keep, const index_t* count, RaggedView<float> numbers) {
  const index_t head = blockIdx.x, n = count[head];
  float* x = numbers.row(head);
  for (index_t at = 0; at < n; at += Threads) {
    const index_t i = at + threadIdx.x;
    const float value = i < n ? x[keep.row(head)[i]] : 0.0f;
    __syncthreads();
    if (i < n) x[i] = value;
    __syncthreads();
  }
}

}  // namespace cuda_kernels

/// A block a head; lists and counts lie on the device, so a TopK before it needs no wait.
template <>
struct KeepRows<Cuda> {
  template <class Codec>
  static Status rows(Context<Cuda>& ctx, const Codec& codec, const PageTable& table, RaggedView<const std::int32_t> keep,
                     const index_t* count) {
    return rows(ctx, codec, table, KeptSlots{keep, count});
  }
  template <class Codec>
  static Status rows(Context<Cuda>& ctx, const Codec& named, const PageTable& table, const KeptSlots& keep) {
    using namespace cuda_kernels;
    if constexpr (is_latent<Codec>)
      if (named.map.uneven) return stored_rows(ctx, named, table, keep);  // heads have pages of their own sizes
    PageTable stored = table;
    stored.dim = stored_dim(named, table.dim);
    return stored_rows(ctx, stored_codec(named), stored, keep);
  }

  static Status numbers(Context<Cuda>& ctx, RaggedView<const std::int32_t> keep, const index_t* count, RaggedView<float> numbers) {
    return cuda::launch(ctx, cuda_kernels::keep_head_numbers<256>, {numbers.heads}, 256, 0, keep, count, numbers);
  }

 private:
  /// Of rows of numbers, whatever these mean.
  template <class Codec>
  static Status stored_rows(Context<Cuda>& ctx, const Codec& codec, const PageTable& table, const KeptSlots& keep) {
    using namespace cuda_kernels;
    if (codec.group_slots() != 1) return Status::not_supported;
    if (!codec.valid(table.dim) || table.dim > max_head_dim || table.page_slots < 1 || table.page_slots > 65536) return Status::invalid_argument;
    if constexpr (requires { codec.layout; })
      if (!lies_in_rows(codec)) return cuda::launch(ctx, keep_head_lanes<Codec>, {table.heads}, lane_threads, sizeof(LaneSlots), codec, table, keep);
    return cuda::launch(ctx, keep_head_rows<Codec>, {table.heads}, keep_threads, 0, codec, table, keep);
  }
};

}  // namespace kvcondense::prim
