#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/find_rows.cuh>
#include <kvcondense/backend/cuda/group_pages.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/latent_rows.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/paired_rows.cuh>
#include <kvcondense/core/row_groups.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/keep_rows.hpp>

// Rows that heads of several layers, or of one, store together: pages that each of them reads through its own map.

namespace kvcondense::prim {

/// The layers of a group: exact newest slots of each, and how it codes.
template <class Codec>
struct SharingLayers {
  struct Layer {
    PageTable newest{};
    Codec codec{};
  };
  ExactRows exact{};
  Layer at[max_row_group];
  int count = 0;

  KVCONDENSE_HD index_t dim() const { return at[0].newest.dim; }
};

/// Newest slots [first, first + ...) of the heads [head, head + heads) of every layer of a group, which hold the same tokens.
struct SharedSlots {
  std::byte* page = nullptr;  ///< that they all become
  std::int32_t head = 0, heads = 0;
  index_t first = 0;
};

/// Codecs whose pages may be of several heads.
template <class C>
inline constexpr bool may_share_rows = is_latent<C>;
template <>
inline constexpr bool may_share_rows<PairedRows> = true;

namespace cuda_kernels {

/// Row `slot` of the newest slots of a head.
template <class Codec>
__device__ inline auto newest_row(const SharingLayers<Codec>& layers, int layer, index_t head, index_t slot) {
  return DueRows{layers.exact, layers.at[layer].newest, head, {nullptr, 0, slot}}.row(0);
}

/// What lies in pages of shared rows, whatever a head makes of it: coordinates are no head's own.
template <class Codec>
__device__ inline RowPage<Codec> rows_in(const Codec& codec, index_t head, std::byte* page, int page_slots, int dim) {
  return {of_head(codec, head), page, page_slots, dim};
}
template <class C>
__device__ inline RowPage<C> rows_in(const Latent<C>& codec, index_t head, std::byte* page, int page_slots, int) {
  return {of_head(codec.codec, head), page, page_slots, codec.map.of(head).rank};
}

template <class C>
struct SumScratch {
  float sum[max_head_dim], mapped[max_head_dim];
  typename RowPage<C>::Scratch inner;
};
template <class C>
struct SumShared {
  SumScratch<C> of_warp[codec_warps];
};

/// Sums of what the maps of a group's heads make of their rows become pages: a warp a slot. Grid: pages, slots.
template <class C>
__global__ void __launch_bounds__(codec_threads, 8) code_sums(SharingLayers<Latent<C>> layers, const SharedSlots* pages, index_t* repaired) {
  const SharedSlots job = pages[blockIdx.x];
  const int slot = static_cast<int>(blockIdx.y) * codec_warps + cuda::warp_of_block(), page_slots = static_cast<int>(layers.at[0].newest.page_slots);
  if (slot >= page_slots) return;  // whole warps leave, and no block barrier follows
  SumScratch<C>& s = cuda::shared_as<SumShared<C>>().of_warp[cuda::warp_of_block()];
  const int dim = static_cast<int>(layers.dim());
  bool counted = false;
  for (int l = 0; l < layers.count; ++l)
    for (int h = job.head; h < job.head + job.heads; ++h) {
      const auto x = newest_row(layers, l, h, job.first + slot);
      const LatentMap map = layers.at[l].codec.map.of(h);
      counted = counted || !storable_row(x, dim);
      into_latent(map, x, s.mapped);
      const bool first = l == 0 && h == job.head;
      for (int j = cuda::lane_of_warp(); j < map.rank; j += cuda::warp_lanes) s.sum[j] = __fadd_rn(first ? 0.0f : s.sum[j], s.mapped[j]);
    }
  __syncwarp();  // lanes of codes read what others have summed
  const int bad = rows_in(layers.at[0].codec, job.head, job.page, page_slots, dim).encode(slot, MappedRow{s.sum, counted}, 0, s.inner);
  if (cuda::lane_of_warp() == 0) add_repaired(repaired, bad);
}

/// The sums of a page as a block that codes a group of slots reads them: made whenever one is read, as LatentRows.
template <class C>
struct SummedRows {
  static constexpr bool counted = true;  ///< what is no number was, as it was stored
  const SharingLayers<Latent<C>>& layers;
  SharedSlots slots;

  __device__ auto row(int i) const {
    return [this, i](int j) {
      float sum = 0.0f;
      each_member([&](int l, index_t h) { sum = __fadd_rn(sum, coordinate(layers.at[l].codec.map.of(h), newest_row(layers, l, h, slots.first + i), j)); });
      return finite_sum(sum, [&] {
        bool good = true;
        each_member([&](int l, index_t h) { good = good && storable_numbers(newest_row(layers, l, h, slots.first + i), static_cast<int>(layers.dim()), 0, 1); });
        return good;
      });
    };
  }

 private:
  template <class Use>
  __device__ void each_member(Use&& use) const {
    for (int l = 0; l < layers.count; ++l)
      for (index_t h = slots.head; h < slots.head + slots.heads; ++h) use(l, h);
  }
};

/// The same where slots share what their codes are made of: a block a group of slots. Grid: pages, groups.
template <class C>
__global__ void __launch_bounds__(channel_threads, group_blocks<C>) code_group_sums(SharingLayers<Latent<C>> layers, int group, const SharedSlots* pages, index_t* repaired) {
  auto& shared = cuda::shared_as<typename RowPage<C>::GroupScratch>();
  const SharedSlots job = pages[blockIdx.x];
  const int first = static_cast<int>(blockIdx.y) * group;
  const int bad = rows_in(layers.at[0].codec, job.head, job.page, static_cast<int>(layers.at[0].newest.page_slots), static_cast<int>(layers.dim()))
                      .encode_group(first, SummedRows<C>{layers, job}, first, shared);
  if (threadIdx.x == 0) add_repaired(repaired, bad);
}

/// Whether a long row counts: all numbers of all heads are such that products of them are some. A warp a row. Grid: blocks of rows.
template <class Codec>
__global__ void __launch_bounds__(codec_threads) find_long_rows(SharingLayers<Codec> layers, SharedSlots heads, index_t rows, std::uint8_t* some) {
  const index_t i = static_cast<index_t>(blockIdx.x) * codec_warps + cuda::warp_of_block();
  if (i >= rows) return;  // the whole warp
  bool good = true;
  for (int l = 0; l < layers.count; ++l)
    for (int h = heads.head; h < heads.head + heads.heads; ++h) {
      const auto x = newest_row(layers, l, h, heads.first + i);
      for (int c = cuda::lane_of_warp(); c < static_cast<int>(layers.dim()); c += cuda::warp_lanes) good = good && fabsf(x(c)) <= 1e15f;
    }
  const int all = __all_sync(cuda::full_warp, static_cast<int>(good));
  if (cuda::lane_of_warp() == 0) some[i] = static_cast<std::uint8_t>(all);
}

struct LongShared {
  float row[2][product_rows][product_tile];
  std::uint8_t some[product_rows];
};

/// Sums of products of numbers i and j of long rows, those of all heads of a group side by side: a thread a pair, in the order of the CPU. Grid: tiles of i,
/// of j.
template <class Codec>
__global__ void __launch_bounds__(product_threads) sum_long_products(SharingLayers<Codec> layers, SharedSlots heads, index_t rows, const std::uint8_t* some, float* out) {
  LongShared& shared = cuda::shared_as<LongShared>();
  const int dim = static_cast<int>(layers.dim()), n = layers.count * heads.heads * dim, thread = static_cast<int>(threadIdx.x);
  const int r = thread / product_tile, c = thread % product_tile;
  const int tile[2] = {static_cast<int>(blockIdx.x) * product_tile, static_cast<int>(blockIdx.y) * product_tile};
  const auto number = [&](index_t i, int at) {
    const int member = at / dim;
    return newest_row(layers, member / heads.heads, heads.head + member % heads.heads, heads.first + i)(at % dim);
  };
  float sum = 0.0f;
  for (index_t from = 0; from < rows; from += product_rows) {
    const int count = static_cast<int>(rows - from < product_rows ? rows - from : product_rows);
    __syncthreads();
    if (r < count) {
      for (int k = 0; k < 2; ++k) shared.row[k][r][c] = tile[k] + c < n ? number(from + r, tile[k] + c) : 0.0f;
      if (c == 0) shared.some[r] = some[from + r];
    }
    __syncthreads();
    for (int i = 0; i < count; ++i)
      if (shared.some[i] != 0) sum = __fadd_rn(sum, __fmul_rn(shared.row[0][i][r], shared.row[1][i][c]));
  }
  if (tile[0] + r < n && tile[1] + c < n) out[static_cast<index_t>(tile[0] + r) * n + tile[1] + c] = sum;
}

template <class Page>
struct JoinRowsShared {
  struct Warp {
    float row[max_head_dim];
    typename Page::Scratch scratch;
  };
  JoinPlaces place;
  Warp of_warp[channel_threads / cuda::warp_lanes];
};
template <class Codec>
using SharedRowPage = decltype(rows_in(std::declval<const Codec&>(), index_t{}, static_cast<std::byte*>(nullptr), 0, 0));

/// A block a chain of joins, a slot a warp: rows are loaded, then, behind a barrier, coded. Behind it nobody reads what codes overwrite: live slots only move
/// to the front.
template <class Codec>
__global__ void __launch_bounds__(channel_threads, 2) join_rows(Codec codec, int page_slots, int dim, const JoinedPages* joins, const index_t* chain) {
  using Page = SharedRowPage<Codec>;
  constexpr int warps = channel_threads / cuda::warp_lanes;
  auto& shared = cuda::shared_as<JoinRowsShared<Page>>();
  auto& own = shared.of_warp[cuda::warp_of_block()];
  for (index_t j = chain[blockIdx.x]; j < chain[blockIdx.x + 1]; ++j) {
    const JoinedPages& job = joins[j];
    const int n = find_live(job, shared.place);
    for (int first = 0; first < n; first += warps) {
      const int i = first + cuda::warp_of_block();
      if (i < n) {
        const int at = shared.place.of[i];
        load_row(rows_in(codec, job.head, job.page[at / JoinedPages::most_slots], page_slots, dim), at % JoinedPages::most_slots, own.row);
      }
      __syncthreads();
      if (i < n) static_cast<void>(rows_in(codec, job.head, job.into, page_slots, dim).encode(i, MappedRow{own.row, false}, 0, own.scratch));
      __syncthreads();
    }
  }
}

}  // namespace cuda_kernels

/// Pages, tables and lists lie on the device.
struct SharedRows {
  /// Newest slots of the heads of groups become rows of coordinates, one for all heads of a group, where `pages` says: whole pages.
  ///
  /// Numbers  sums in the order of the CPU, then as PageCodec<Cuda, C>::encode; what `append` has counted is not counted again.
  template <class C>
  static Status sum(Context<Cuda>& ctx, const SharingLayers<Latent<C>>& layers, const SharedSlots* pages, index_t count, index_t* repaired) {
    using namespace cuda_kernels;
    const C& codec = layers.at[0].codec.codec;
    const index_t slots = layers.at[0].newest.page_slots;
    if constexpr (GroupCodec<C>)
      if (shares_slots(codec))
        return cuda::launch(ctx, code_group_sums<C>, {count, slots / codec.group_slots()}, channel_threads, group_shared<typename RowPage<C>::GroupScratch>(codec), layers,
                            static_cast<int>(codec.group_slots()), pages, repaired);
    if constexpr (RowCodec<C>)
      return cuda::launch(ctx, code_sums<C>, {count, cuda::covering(slots, codec_warps)}, codec_threads, sizeof(SumShared<C>), layers, pages, repaired);
    else return Status::not_supported;
  }
  /// Bytes behind products of n numbers that `products` needs for so many rows.
  static constexpr index_t flag_floats(index_t rows) { return (rows + 3) / 4; }
  /// Sums of products of the numbers of long rows, those of one group's heads side by side: n * n numbers, and flag_floats(rows) behind them as scratch.
  ///
  /// Numbers  float32, in the order of the CPU: equal. Rows with numbers that have no square count for nothing.
  template <class Codec>
  static Status products(Context<Cuda>& ctx, const SharingLayers<Codec>& layers, const SharedSlots& heads, index_t rows, float* out) {
    using namespace cuda_kernels;
    const index_t n = layers.count * heads.heads * layers.dim(), tiles = cuda::covering(n, product_tile);
    auto* const some = reinterpret_cast<std::uint8_t*>(out + n * n);
    const Status s = cuda::launch(ctx, find_long_rows<Codec>, {cuda::covering(rows, codec_warps)}, codec_threads, 0, layers, heads, rows, some);
    return s == Status::ok ? cuda::launch(ctx, sum_long_products<Codec>, {tiles, tiles}, product_threads, sizeof(LongShared), layers, heads, rows, some, out) : s;
  }
  /// Live slots of two pages become one of a head's own, as GroupPages::join, and by it where slots are not independent.
  ///
  /// Numbers  as PageCodec<Cpu, Codec>::decode, then encode: exact numbers, coordinates too, move as they are.
  template <class Codec>
  static Status join(Context<Cuda>& ctx, const Codec& codec, const ColumnParts& column, const GroupWork& work) {
    using namespace cuda_kernels;
    using Stored = std::remove_cvref_t<decltype(stored_codec(codec))>;
    if constexpr (GroupCodec<Stored>)
      if (shares_slots(stored_codec(codec))) return GroupPages::join(ctx, codec, column, work);
    if constexpr (!RowCodec<Stored>) return Status::not_supported;
    else return cuda::launch(ctx, join_rows<Codec>, {work.chains}, channel_threads, sizeof(JoinRowsShared<SharedRowPage<Codec>>), codec,
                        static_cast<int>(column.coded.page_slots), static_cast<int>(column.coded.dim), work.joins, work.chain);
  }
};

}  // namespace kvcondense::prim
