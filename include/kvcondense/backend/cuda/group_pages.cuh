#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/core/status.hpp>

// Pages of codes whose slots share parameters along slots: rows enter them in whole groups, at places that the host names, and two pages
// with tombstones become one.

namespace kvcondense::prim {

/// Of the slots of a head that become codes, those from `begin` on, which go to the slots from `first` on of a page: whole groups.
struct CodedRows {
  std::byte* page = nullptr;
  std::int32_t head = 0, begin = 0, first = 0, count = 0;
};

/// Two pages whose live slots become one page. `into` is the first of them, or a third.
struct JoinedPages {
  static constexpr int most_slots = 256, word_bits = 32;

  std::byte* into = nullptr;
  std::byte* page[2] = {};
  std::uint32_t live[2][most_slots / word_bits] = {};  ///< a bit a slot
  index_t head = 0;
};

/// What a step does with the pages of a column. Lists lie on the device.
struct GroupWork {
  const CodedRows* coded = nullptr;
  index_t coded_count = 0;
  const JoinedPages* joins = nullptr;
  const index_t* chain = nullptr;  ///< chains + 1: joins [chain[i], chain[i + 1]) are done one after the other
  index_t chains = 0;
};

namespace cuda_kernels {

/// A block a group of slots. Grid: jobs, groups of a page.
template <class Codec>
__global__ void __launch_bounds__(channel_threads, group_blocks<Codec>) code_groups(Codec codec, ExactRows exact, ColumnParts column, KeptSlots due, const CodedRows* jobs,
                                                                 index_t* repaired) {
  typename RowPage<Codec>::GroupScratch& shared = cuda::shared_as<typename RowPage<Codec>::GroupScratch>();
  const CodedRows job = jobs[blockIdx.x];
  const RowPage<Codec> page(of_head(codec, job.head), job.page, static_cast<int>(column.coded.page_slots), static_cast<int>(column.coded.dim));
  const int at = static_cast<int>(blockIdx.y) * page.group_slots();
  if (at >= job.count) return;
  const DueRows rows{exact, column.newest, job.head, due.of(job.head)};
  const int bad = page.encode_group(job.first + at, rows, job.begin + at, shared);
  if (threadIdx.x == 0) add_repaired(repaired, bad);
}

struct JoinShared {
  std::uint16_t place[2 * JoinedPages::most_slots];  ///< of every live slot, in order: its slot, and most_slots more in the second page
};
static_assert(channel_threads >= JoinedPages::most_slots);

/// Where the live slots of two pages are, in order; how many they are. All threads of a block; a barrier behind it.
__device__ inline int find_live(const JoinedPages& job, JoinShared& shared) {
  const int c = static_cast<int>(threadIdx.x), word = c / JoinedPages::word_bits;
  const std::uint32_t bit = 1u << (c % JoinedPages::word_bits);
  int n = 0;
  for (int k = 0; k < 2; ++k) {
    int mine = n;
    for (int w = 0; w < JoinedPages::most_slots / JoinedPages::word_bits; ++w) {
      const std::uint32_t live = job.live[k][w];
      if (w < word) mine += __popc(live);
      if (w == word) {
        mine += __popc(live & (bit - 1u));
        if (c < JoinedPages::most_slots && (live & bit) != 0) shared.place[mine] = static_cast<std::uint16_t>(k * JoinedPages::most_slots + c);
      }
      n += __popc(live);
    }
  }
  __syncthreads();
  return n;
}

/// A block a chain of joins, a thread a channel: ranges and codes are made from decoded numbers, a group at a time. Behind the codes of a group,
/// which wait in shared memory, nobody reads what they overwrite: live slots only move to the front.
template <int Bits>
__global__ void __launch_bounds__(channel_threads, 4) join_groups(GroupInt<Bits> codec, int page_slots, int dim, const JoinedPages* joins, const index_t* chain) {
  JoinShared& shared = cuda::shared_as<JoinShared>();
  std::uint8_t* const codes = cuda::dyn_smem() + sizeof(JoinShared);
  const int group = static_cast<int>(codec.group_slots()), c = static_cast<int>(threadIdx.x);
  for (index_t j = chain[blockIdx.x]; j < chain[blockIdx.x + 1]; ++j) {
    const JoinedPages& job = joins[j];
    const int n = find_live(job, shared);
    const RowPage<GroupInt<Bits>> pages[2] = {{codec, job.page[0], page_slots, dim}, {codec, job.page[1], page_slots, dim}};
    const RowPage<GroupInt<Bits>> into(codec, job.into, page_slots, dim);
    const auto row = [&](int i) {  // the last one is repeated until its group is whole: that changes no range
      const int at = shared.place[i < n ? i : n - 1];
      return pages[at / JoinedPages::most_slots].value(at % JoinedPages::most_slots, c);
    };
    for (int first = 0; first < n; first += group) {
      if (c < dim) {
        GroupRange range;
        for (int i = 0; i < group; ++i) range.include(row(first + i));
        const GroupParams p = fit_group(codec.form, Bits, codec.params, range);
        for (int i = 0; i < group; ++i) codes[i * dim + c] = static_cast<std::uint8_t>(into.code_for(row(first + i), p.offset, p.inverse));
        into.write_params(first, c, p.scale, p.offset);  // no other thread reads those of its channel
      }
      __syncthreads();
      for (int i = cuda::warp_of_block(); i < group; i += channel_threads / cuda::warp_lanes)
        into.write_codes(first + i, codes + i * dim, cuda::lane_of_warp(), cuda::warp_lanes);
      __syncthreads();
    }
  }
}

/// Where decoded rows begin in the shared memory of a block that joins pages of any codec.
template <class Codec>
KVCONDENSE_HD constexpr std::size_t decoded_at() {
  static_assert(sizeof(JoinShared) % 16 == 0);
  return sizeof(JoinShared) + (sizeof(typename RowPage<Codec>::GroupScratch) + 15) / 16 * 16;
}

template <class Codec>
std::size_t decoded_bytes(index_t group, index_t dim) {
  return decoded_at<Codec>() + static_cast<std::size_t>(group * dim) * sizeof(float);
}

/// Rows in shared memory, one behind the other, that nobody repairs.
struct DecodedRows {
  static constexpr bool counted = true;
  const float* rows;
  int dim;

  __device__ auto row(int i) const {
    const float* x = rows + i * dim;
    return [x](int c) { return x[c]; };
  }
};

/// The same for any codec: a group at a time is decoded into shared memory, a warp a row, and coded again by the block.
template <class Codec>
__global__ void __launch_bounds__(channel_threads, group_blocks<Codec>) join_row_groups(Codec codec, int page_slots, int dim, const JoinedPages* joins, const index_t* chain) {
  using Scratch = typename RowPage<Codec>::GroupScratch;
  JoinShared& live = *reinterpret_cast<JoinShared*>(cuda::dyn_smem());
  Scratch& scratch = *reinterpret_cast<Scratch*>(cuda::dyn_smem() + sizeof(JoinShared));
  float* const rows = reinterpret_cast<float*>(cuda::dyn_smem() + decoded_at<Codec>());
  for (index_t j = chain[blockIdx.x]; j < chain[blockIdx.x + 1]; ++j) {
    const JoinedPages& job = joins[j];
    const int n = find_live(job, live);
    const auto page = [&](std::byte* at) { return RowPage<Codec>(of_head(codec, job.head), at, page_slots, dim); };
    const RowPage<Codec> pages[2] = {page(job.page[0]), page(job.page[1])}, into = page(job.into);
    for (int first = 0, group = into.group_slots(); first < n; first += group) {
      for (int i = cuda::warp_of_block(); i < group; i += channel_threads / cuda::warp_lanes) {
        const int at = live.place[first + i < n ? first + i : n - 1];
        load_row(pages[at / JoinedPages::most_slots], at % JoinedPages::most_slots, rows + i * dim);
      }
      __syncthreads();
      into.encode_group(first, DecodedRows{rows, dim}, 0, scratch);
      __syncthreads();
    }
  }
}

}  // namespace cuda_kernels

/// Pages, tables and lists lie on the device.
struct GroupPages {
  /// Newest slots become codes where `work` says. In one launch.
  ///
  /// Numbers  as PageCodec<Cuda, Codec>::encode; what `append` has counted is not counted again.
  template <class Codec>
  static Status code(Context<Cuda>& ctx, const Codec& codec, const ExactRows& exact, const ColumnParts& column, const KeptSlots& due, const GroupWork& work,
                     index_t* repaired) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, code_groups<Codec>, {work.coded_count, column.coded.page_slots / codec.group_slots()}, channel_threads,
                        sizeof(typename RowPage<Codec>::GroupScratch), codec, exact, column, due, work.coded, repaired);
  }
  /// Live slots of two pages, decoded and coded again with parameters of their own. Places behind them, up to a whole group, repeat the last.
  ///
  /// Numbers  as PageCodec<Cpu, Codec>::decode, then encode.
  template <class Codec>
  static Status join(Context<Cuda>& ctx, const Codec& codec, const ColumnParts& column, const GroupWork& work) {
    using namespace cuda_kernels;
    const std::size_t shared = decoded_bytes<Codec>(codec.group_slots(), column.coded.dim);
    return cuda::launch(ctx, join_row_groups<Codec>, {work.chains}, channel_threads, shared, codec, static_cast<int>(column.coded.page_slots),
                        static_cast<int>(column.coded.dim), work.joins, work.chain);
  }
  template <int Bits>
  static Status join(Context<Cuda>& ctx, const GroupInt<Bits>& codec, const ColumnParts& column, const GroupWork& work) {
    using namespace cuda_kernels;
    const std::size_t shared = sizeof(JoinShared) + static_cast<std::size_t>(codec.group_slots() * column.coded.dim);
    return cuda::launch(ctx, join_groups<Bits>, {work.chains}, channel_threads, shared, codec, static_cast<int>(column.coded.page_slots),
                        static_cast<int>(column.coded.dim), work.joins, work.chain);
  }
};

}  // namespace kvcondense::prim
