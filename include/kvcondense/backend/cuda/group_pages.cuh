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
template <int Bits>
__global__ void __launch_bounds__(channel_threads, 4) code_groups(GroupInt<Bits> codec, ExactRows exact, ColumnParts column, KeptSlots due, const CodedRows* jobs,
                                                                 index_t* repaired) {
  ChannelShared& shared = cuda::shared_as<ChannelShared>();
  const CodedRows job = jobs[blockIdx.x];
  const int at = static_cast<int>(blockIdx.y) * static_cast<int>(codec.group_slots());
  if (at >= job.count) return;
  const RowPage<GroupInt<Bits>> page(codec, job.page, static_cast<int>(column.coded.page_slots), static_cast<int>(column.coded.dim));
  const DueRows rows{exact, column.newest, job.head, due.of(job.head)};
  const int bad = encode_channel_group(page, job.first + at, rows, job.begin + at, shared);
  if (threadIdx.x == 0) add_repaired(repaired, bad);
}

struct JoinShared {
  std::uint16_t place[2 * JoinedPages::most_slots];  ///< of every live slot, in order: its slot, and most_slots more in the second page
};
static_assert(channel_threads >= JoinedPages::most_slots);

/// A block a chain of joins, a thread a channel: ranges and codes are made from decoded numbers, a group at a time. Behind the codes of a group,
/// which wait in shared memory, nobody reads what they overwrite: live slots only move to the front.
template <int Bits>
__global__ void __launch_bounds__(channel_threads, 4) join_groups(GroupInt<Bits> codec, int page_slots, int dim, const JoinedPages* joins, const index_t* chain) {
  JoinShared& shared = cuda::shared_as<JoinShared>();
  std::uint8_t* const codes = cuda::dyn_smem() + sizeof(JoinShared);
  const int group = static_cast<int>(codec.group_slots()), c = static_cast<int>(threadIdx.x), word = c / JoinedPages::word_bits;
  const std::uint32_t bit = 1u << (c % JoinedPages::word_bits);
  for (index_t j = chain[blockIdx.x]; j < chain[blockIdx.x + 1]; ++j) {
    const JoinedPages& job = joins[j];
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

}  // namespace cuda_kernels

/// Pages, tables and lists lie on the device.
struct GroupPages {
  /// Newest slots become codes where `work` says. In one launch.
  ///
  /// Numbers  as PageCodec<Cuda, GroupInt>::encode; what `append` has counted is not counted again.
  template <int Bits>
  static Status code(Context<Cuda>& ctx, const GroupInt<Bits>& codec, const ExactRows& exact, const ColumnParts& column, const KeptSlots& due, const GroupWork& work,
                     index_t* repaired) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, code_groups<Bits>, {work.coded_count, column.coded.page_slots / codec.group_slots()}, channel_threads, sizeof(ChannelShared), codec,
                        exact, column, due, work.coded, repaired);
  }
  /// Live slots of two pages, decoded and coded again with parameters of their own. Places behind them, up to a whole group, repeat the last.
  ///
  /// Numbers  as PageCodec<Cpu, GroupInt>::decode, then encode.
  template <int Bits>
  static Status join(Context<Cuda>& ctx, const GroupInt<Bits>& codec, const ColumnParts& column, const GroupWork& work) {
    using namespace cuda_kernels;
    const std::size_t shared = sizeof(JoinShared) + static_cast<std::size_t>(codec.group_slots() * column.coded.dim);
    return cuda::launch(ctx, join_groups<Bits>, {work.chains}, channel_threads, shared, codec, static_cast<int>(column.coded.page_slots),
                        static_cast<int>(column.coded.dim), work.joins, work.chain);
  }
};

}  // namespace kvcondense::prim
