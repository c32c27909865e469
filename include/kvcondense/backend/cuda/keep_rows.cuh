#pragma once

#include <cstdint>
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

/// Where the slots of a head lie: bytes in pages.
template <class Codec>
struct SlotPlaces {
  RowPage<Codec> alike;  ///< what all pages have in common
  std::byte* const* pages;
  unsigned page_slots;  ///< slots are counted in 31 bits

  __device__ SlotPlaces(const Codec& codec, const PageTable& table, index_t head)
      : alike(of_head(codec, head), nullptr, static_cast<int>(table.page_slots), static_cast<int>(table.dim)),
        pages(table.pages + table.offset[head]), page_slots(static_cast<unsigned>(table.page_slots)) {}

  __device__ SlotBytes operator()(index_t s) const {
    const unsigned page = static_cast<unsigned>(s) / page_slots;
    RowPage<Codec> rows = alike;
    rows.data = pages[page];
    return rows.slot_bytes(static_cast<int>(static_cast<unsigned>(s) - page * page_slots));
  }
  /// Low bits that tell what every place in the pages of slots [0, n) is a multiple of. The same in all threads.
  __device__ unsigned grain(index_t n, cuda::BlockScratch<unsigned, keep_threads>& scratch) const {
    RowPage<Codec> page = alike;
    page.data = pages[0];
    const SlotBytes first = page.slot_bytes(0), next = page.slot_bytes(1);
    unsigned low = 0;
    const auto add = [&](const std::byte* at) { low |= static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(at)) & 15u; };
    add(first.row), add(first.params), add(next.row), add(next.params);
    low |= static_cast<unsigned>(first.row_bytes | first.param_bytes) & 15u;
    for (unsigned p = threadIdx.x; p * page_slots < static_cast<unsigned>(n); p += keep_threads) add(pages[p]);
    return cuda::block_reduce<unsigned, keep_threads>(low, [](unsigned x, unsigned y) { return x | y; }, scratch);
  }
};

/// From slot `first` on, in pieces of a Unit. Kept slots ascend, so a slot's new place is never behind its old one: pieces are read, then, behind
/// a barrier, written, a round of them at a time, and nothing is written that is still to be read.
template <class Unit, class Places>
__device__ inline void keep_slots(const Places& slot, const HeadKept& kept, index_t first) {
  constexpr unsigned each = 4, in_round = keep_threads * each;  // pieces of a thread, and of all, in one round
  constexpr int bytes = static_cast<int>(sizeof(Unit));
  const index_t n = kept.size;
  const auto size = static_cast<unsigned>(slot(0).size() / bytes);
  const auto piece = [&](index_t s, unsigned u) { return reinterpret_cast<Unit*>(slot(s).at(static_cast<int>(u) * bytes)); };
  unsigned into = 0;  // a round begins at piece `into` of kept slot `first`
  while (first < n) {
    Unit value[each];
#pragma unroll
    for (unsigned k = 0; k < each; ++k) {
      const unsigned u = into + k * keep_threads + threadIdx.x;
      if (const index_t i = first + u / size; i < n) value[k] = *piece(kept[i], u % size);
    }
    __syncthreads();
#pragma unroll
    for (unsigned k = 0; k < each; ++k) {
      const unsigned u = into + k * keep_threads + threadIdx.x;
      if (const index_t i = first + u / size; i < n) *piece(i, u % size) = value[k];
    }
    __syncthreads();
    into += in_round;
    first += into / size, into %= size;
  }
}

/// A block a head: rows move in the largest pieces that all of its pages have room for, 16 bytes in those of a cache whose rows are a multiple of that.
template <class Codec>
__global__ void __launch_bounds__(keep_threads) keep_head_rows(Codec codec, PageTable table, KeptSlots keep) {
  const index_t head = blockIdx.x;
  const HeadKept kept = keep.of(head);
  const SlotPlaces<Codec> slot(codec, table, head);
  const index_t n = kept.size;
  if (n == 0) return;
  // The first slots often stay: begin where one moves. All threads find the same.
  index_t low = 0, high = n;  // slot i is kept as i below low
  while (low < high) {
    const index_t middle = low + (high - low) / 2;
    if (kept[middle] == middle) low = middle + 1;
    else high = middle;
  }
  if (low == n) return;
  const unsigned grain = slot.grain(kept[n - 1] + 1, cuda::shared_as<cuda::BlockScratch<unsigned, keep_threads>>());
  if (grain == 0) keep_slots<uint4>(slot, kept, low);
  else if (grain % 4 == 0) keep_slots<std::uint32_t>(slot, kept, low);
  else keep_slots<std::byte>(slot, kept, low);
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
    return cuda::launch(ctx, keep_head_rows<Codec>, {table.heads}, keep_threads, sizeof(cuda::BlockScratch<unsigned, keep_threads>), codec, table, keep);
  }
};

}  // namespace kvcondense::prim
