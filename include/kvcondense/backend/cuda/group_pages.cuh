#pragma once

#include <cstdint>
#include <type_traits>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/latent_rows.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/mapped_rows.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/scaled_rows.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>

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
  float* rows = nullptr;  ///< scratch: a group of rows for every chain
  RaggedView<const float> scores{};  ///< of all slots that there were before the step, for codecs that tell slots apart; no data: nothing is coded
};

namespace cuda_kernels {

/// A block a group of slots. Grid: jobs, groups of a page.
template <class Codec>
__global__ void __launch_bounds__(channel_threads, group_blocks<Codec>) code_groups(Codec codec, int group, ExactRows exact, ColumnParts column, KeptSlots due, RaggedView<const float> scores,
                                                                                   const CodedRows* jobs, index_t* repaired) {
  auto& shared = cuda::shared_as<typename RowPage<Codec>::GroupScratch>();
  const CodedRows job = jobs[blockIdx.x];
  const int at = static_cast<int>(blockIdx.y) * group;
  if (at >= job.count) return;
  const RowPage<Codec> page(of_head(codec, job.head), job.page, static_cast<int>(column.coded.page_slots), static_cast<int>(column.coded.dim));
  DueRows rows{exact, column.newest, job.head, due.of(job.head)};
  if constexpr (GradedCodec<Codec>) rows.scores = scores.row(job.head) + due.ranges[job.head].base;
  const int bad = page.encode_group(job.first + at, rows, job.begin + at, shared);
  if (threadIdx.x == 0) add_repaired(repaired, bad);
}

struct JoinPlaces {
  std::uint16_t of[2 * JoinedPages::most_slots];  ///< of every live slot, in order: its slot, and most_slots more in the second page
};
template <class Codec>
struct JoinShared {
  JoinPlaces place;
  typename RowPage<Codec>::GroupScratch group;
};
template <GradedCodec Codec>
struct JoinShared<Codec> {
  JoinPlaces place;
  float grade[JoinedPages::most_slots];  ///< of the rows of a group
  typename RowPage<Codec>::GroupScratch group;
};
static_assert(channel_threads >= JoinedPages::most_slots);

/// Where the live slots of both pages are, and how many, in every thread. All threads of a block; one barrier.
__device__ inline int find_live(const JoinedPages& job, JoinPlaces& place) {
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
        if (c < JoinedPages::most_slots && (live & bit) != 0) place.of[mine] = static_cast<std::uint16_t>(k * JoinedPages::most_slots + c);
      }
      n += __popc(live);
    }
  }
  __syncthreads();
  return n;
}

/// A block a chain of joins, a group at a time: it is decoded into the block's rows, then coded. Behind a group that was decoded nobody reads what its codes
/// overwrite: live slots only move to the front.
template <class Codec>
__global__ void __launch_bounds__(channel_threads, group_blocks<Codec>) join_groups(Codec codec, int group, int page_slots, int dim, const JoinedPages* joins, const index_t* chain,
                                                                                   float* scratch) {
  auto& shared = cuda::shared_as<JoinShared<Codec>>();
  float* const own = scratch + static_cast<std::size_t>(blockIdx.x) * static_cast<std::size_t>(group * dim);
  for (index_t j = chain[blockIdx.x]; j < chain[blockIdx.x + 1]; ++j) {
    const JoinedPages& job = joins[j];
    const int n = find_live(job, shared.place);
    const auto page = [&](std::byte* at) { return RowPage<Codec>(of_head(codec, job.head), at, page_slots, dim); };
    const RowPage<Codec> into = page(job.into);
    for (int first = 0; first < n; first += group) {
      for (int i = cuda::warp_of_block(); i < group; i += channel_threads / cuda::warp_lanes) {
        const int at = shared.place.of[first + i < n ? first + i : n - 1];  // the last one is repeated until its group is whole
        const RowPage<Codec> from = page(job.page[at / JoinedPages::most_slots]);
        load_row(from, at % JoinedPages::most_slots, own + i * dim);
        if constexpr (GradedCodec<Codec>)
          if (cuda::lane_of_warp() == 0) shared.grade[i] = first + i < n ? from.grade(at % JoinedPages::most_slots) : 0.0f;
      }
      __syncthreads();
      JobRows rows{own, dim};
      if constexpr (GradedCodec<Codec>) rows.scores = shared.grade;
      static_cast<void>(into.encode_group(first, rows, 0, shared.group));
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
                        group_shared<typename RowPage<Codec>::GroupScratch>(codec), codec, static_cast<int>(codec.group_slots()), exact, column, due, work.scores, work.coded, repaired);
  }
  /// Live slots of two pages, decoded and coded again with parameters of their own, each in the class that it had. Places behind them, up to a whole group, repeat the last.
  ///
  /// Numbers  as PageCodec<Cpu, Codec>::decode, then encode, of the codec below a map: rows are not mapped back and forth, which would round them.
  template <class Codec>
  static Status join(Context<Cuda>& ctx, const Codec& named, const ColumnParts& column, const GroupWork& work) {
    using namespace cuda_kernels;
    const auto& codec = stored_codec(named);
    using Stored = std::remove_cvref_t<decltype(codec)>;
    return cuda::launch(ctx, join_groups<Stored>, {work.chains}, channel_threads, group_shared<JoinShared<Stored>>(codec), codec, static_cast<int>(codec.group_slots()),
                        static_cast<int>(column.coded.page_slots), static_cast<int>(stored_dim(named, column.coded.dim)), work.joins, work.chain, work.rows);
  }
};

}  // namespace kvcondense::prim
