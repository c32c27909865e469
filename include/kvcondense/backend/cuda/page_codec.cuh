#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// Slots [first, first + count) of one page, and rows of floats, `step` apart, that go into them or come from them.
struct PageRows {
  std::byte* page = nullptr;
  float* rows = nullptr;  ///< encode only reads them
  index_t step = 0;
  std::int32_t first = 0;
  std::int32_t count = 0;
};

/// Many of them, of all heads of a step: one launch. `jobs` lies on the device; what kernels are shaped by does not.
struct PageBatch {
  const PageRows* jobs = nullptr;
  index_t size = 0;
  index_t most = 0;   ///< no job has more slots
  index_t slots = 0;  ///< of a page
  index_t dim = 0;
};

namespace cuda_kernels {

inline constexpr int codec_threads = 128, codec_warps = codec_threads / cuda::warp_lanes;

template <class Count>
__device__ inline void add_repaired(index_t* repaired, Count n) {
  if (repaired != nullptr && n > 0) atomicAdd(reinterpret_cast<unsigned long long*>(repaired), static_cast<unsigned long long>(n));
}

/// A warp a slot, four slots a block.
template <class Codec>
__global__ void __launch_bounds__(codec_threads, 8) encode_exact(Codec codec, PageBatch batch) {
  const PageRows job = batch.jobs[blockIdx.y];
  const int i = static_cast<int>(blockIdx.x) * codec_warps + cuda::warp_of_block();
  if (i >= job.count) return;
  const RowPage<Codec> page(codec, job.page, static_cast<int>(batch.slots), static_cast<int>(batch.dim));
  for (int c = cuda::lane_of_warp(); c < page.dim; c += cuda::warp_lanes)
    write_number(codec.dtype, page.row(job.first + i), c, job.rows[i * job.step + c]);
}

struct DecodeShared {
  float row[codec_warps][max_head_dim];
};

/// Blocks of a multiprocessor: rows that are made by tables, or of signs, want more registers.
template <class Codec>
inline constexpr int decode_blocks = 8;
template <class C>
inline constexpr int decode_blocks<Tabled<C>> = 4;

template <class Codec>
__global__ void __launch_bounds__(codec_threads, decode_blocks<Codec>) decode_rows(Codec codec, PageBatch batch) {
  const PageRows job = batch.jobs[blockIdx.y];
  const int i = static_cast<int>(blockIdx.x) * codec_warps + cuda::warp_of_block();
  if (i >= job.count) return;  // whole warps leave, and no block barrier follows
  const RowPage<Codec> page(codec, job.page, static_cast<int>(batch.slots), static_cast<int>(batch.dim));
  float* row = cuda::shared_as<DecodeShared>().row[cuda::warp_of_block()];
  load_row(page, job.first + i, row);
  for (int c = cuda::lane_of_warp(); c < page.dim; c += cuda::warp_lanes) job.rows[i * job.step + c] = row[c];
}

template <class Codec>
struct RowsShared {
  typename RowPage<Codec>::Scratch of_warp[codec_warps];
};

/// The rows of a job: row(i)(c) is number c of row i.
struct JobRows {
  static constexpr bool counted = false;
  const float* rows;
  index_t step;
  const float* scores = nullptr;  ///< null: all are alike

  __device__ float score(int i) const { return scores == nullptr ? 0.0f : scores[i]; }
  __device__ auto row(int i) const {
    const float* x = rows + i * step;
    return [x](int c) { return x[c]; };
  }
};

/// Token axis: ranges over the lanes, codes through shared memory into bytes. How many numbers had to be repaired, in every lane.
template <class Rows>
__device__ inline int encode_groups(const auto& page, int slot, const Rows& rows, int i, std::uint8_t* codes) {
  const auto x = rows.row(i);
  const int lane = cuda::lane_of_warp(), group = page.group_channels();
  int bad = 0;
  for (int j = 0; j < page.scales(); ++j) {
    const GroupParams p = page.fit(warp_range(x, j * group, (j + 1) * group, rows.counted, bad));
    if (lane == 0) {
      page.write_params(slot, j, p.scale, p.offset);
      bad += static_cast<int>(p.saturated);
    }
    for (int c = j * group + lane; c < (j + 1) * group; c += cuda::warp_lanes)
      codes[c] = static_cast<std::uint8_t>(page.code_for(x(c), p.offset, p.inverse));
  }
  __syncwarp();
  page.write_codes(slot, codes, lane, cuda::warp_lanes);
  return cuda::warp_sum(bad);
}
template <int Bits>
template <class Rows>
__device__ int RowPage<GroupInt<Bits>>::encode(int slot, const Rows& rows, int i, Scratch& s) const {
  return encode_groups(*this, slot, rows, i, s.codes);
}

/// Codecs whose slots have parameters of their own: a warp a slot.
template <class Codec>
__global__ void __launch_bounds__(codec_threads, 8) encode_rows(Codec codec, PageBatch batch, index_t* repaired) {
  RowsShared<Codec>& shared = cuda::shared_as<RowsShared<Codec>>();
  const PageRows job = batch.jobs[blockIdx.y];
  const int i = static_cast<int>(blockIdx.x) * codec_warps + cuda::warp_of_block();
  if (i >= job.count) return;  // whole warps leave, and no block barrier follows
  const RowPage<Codec> page(codec, job.page, static_cast<int>(batch.slots), static_cast<int>(batch.dim));
  const int bad = page.encode(job.first + i, JobRows{job.rows, job.step}, i, shared.of_warp[cuda::warp_of_block()]);
  if (cuda::lane_of_warp() == 0) add_repaired(repaired, bad);
}

inline constexpr int channel_threads = 256, channel_rows = 32;
static_assert(channel_threads >= max_head_dim);

struct ChannelShared {
  cuda::BlockScratch<int, channel_threads> sums;
  std::uint8_t codes[channel_rows][max_head_dim];
};

/// Channel axis: a block a group of slots, a thread a channel. How many numbers had to be repaired, in every thread.
template <class Rows>
__device__ inline int encode_channels(const auto& page, int slot, const Rows& rows, int begin, ChannelShared& shared) {
  const int n = page.group_slots(), c = static_cast<int>(threadIdx.x);
  int bad = 0;
  GroupParams p;
  if (c < page.dim) {
    GroupRange range;
    for (int i = 0; i < n; ++i) {
      const float x = rows.row(begin + i)(c);
      range.include(x);
      bad += repairs(x, rows.counted);
    }
    p = page.fit(range);
    page.write_params(slot, c, p.scale, p.offset);
    bad += static_cast<int>(p.saturated);
  }
  for (int from = 0; from < n; from += channel_rows) {
    const int count = n - from < channel_rows ? n - from : channel_rows;
    if (c < page.dim)
      for (int i = 0; i < count; ++i)
        shared.codes[i][c] = static_cast<std::uint8_t>(page.code_for(rows.row(begin + from + i)(c), p.offset, p.inverse));
    __syncthreads();
    for (int i = cuda::warp_of_block(); i < count; i += channel_threads / cuda::warp_lanes)
      page.write_codes(slot + from + i, shared.codes[i], cuda::lane_of_warp(), cuda::warp_lanes);
    __syncthreads();
  }
  return cuda::block_sum<int, channel_threads>(bad, shared.sums);
}
template <int Bits>
template <class Rows>
__device__ int RowPage<GroupInt<Bits>>::encode_group(int slot, const Rows& rows, int begin, ChannelShared& shared) const {
  return encode_channels(*this, slot, rows, begin, shared);
}

/// Codecs of whole groups: a block a group.
template <class Codec>
__global__ void __launch_bounds__(channel_threads, group_blocks<Codec>) encode_slot_groups(Codec codec, int group, PageBatch batch, index_t* repaired) {
  auto& shared = cuda::shared_as<typename RowPage<Codec>::GroupScratch>();
  const PageRows job = batch.jobs[blockIdx.y];
  const RowPage<Codec> page(codec, job.page, static_cast<int>(batch.slots), static_cast<int>(batch.dim));
  const int begin = static_cast<int>(blockIdx.x) * group;
  if (begin >= job.count) return;
  const int bad = page.encode_group(job.first + begin, JobRows{job.rows, job.step}, begin, shared);
  if (threadIdx.x == 0) add_repaired(repaired, bad);
}

/// Whether a batch can be meant: pages and rows of a size that kernels are made for.
template <class Codec>
Status check(const Codec& codec, const PageBatch& batch) {
  const bool sizes = batch.size >= 0 && batch.size <= 65535 && batch.most >= 0 && batch.slots > 0 &&
                     batch.slots <= 65536 && batch.dim > 0 && batch.dim <= max_head_dim;
  return sizes && codec.valid(batch.dim) ? Status::ok : Status::invalid_argument;
}

/// Groups of slots of a batch: `first` and `count` of every job are multiples of the group.
template <class Codec>
Status encode_groups_of(Context<Cuda>& ctx, const Codec& codec, const PageBatch& batch, index_t* repaired) {
  const index_t group = codec.group_slots();
  return cuda::launch(ctx, encode_slot_groups<Codec>, {cuda::covering(batch.most, group), batch.size}, channel_threads,
                      group_shared<typename RowPage<Codec>::GroupScratch>(codec), codec, static_cast<int>(group), batch, repaired);
}

}  // namespace cuda_kernels

// The backend half of codecs on CUDA: words over batches of pages, enqueued on the context's stream. Bytes of pages
// are those of the CPU backend, codes and parameters equal bit for bit, decoded numbers too.
//
//   encode(ctx, codec, PageBatch, index_t* repaired) -> Status   repaired: device, null or added to
//   decode(ctx, codec, PageBatch) -> Status

template <>
struct PageCodec<Cuda, ExactRows> {
  static Status encode(Context<Cuda>& ctx, const ExactRows& codec, const PageBatch& batch, index_t* = nullptr) {
    using namespace cuda_kernels;
    if (const Status s = check(codec, batch); s != Status::ok) return s;
    return cuda::launch(ctx, encode_exact<ExactRows>, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, 0, codec, batch);
  }
  static Status decode(Context<Cuda>& ctx, const ExactRows& codec, const PageBatch& batch) {
    using namespace cuda_kernels;
    if (const Status s = check(codec, batch); s != Status::ok) return s;
    return cuda::launch(ctx, decode_rows<ExactRows>, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, sizeof(DecodeShared), codec, batch);
  }
};

/// Codecs as row_codec.cuh says. Where slots share something in groups, `first` and `count` of every job are multiples of the group.
template <class Codec>
  requires cuda_kernels::RowCodec<Codec>
struct PageCodec<Cuda, Codec> {
  static Status encode(Context<Cuda>& ctx, const Codec& codec, const PageBatch& batch, index_t* repaired = nullptr) {
    using namespace cuda_kernels;
    if (const Status s = check(codec, batch); s != Status::ok) return s;
    if constexpr (GroupCodec<Codec>)
      if (codec.group_slots() > 1) return encode_groups_of(ctx, codec, batch, repaired);
    return cuda::launch(ctx, encode_rows<Codec>, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, sizeof(RowsShared<Codec>), codec, batch,
                        repaired);
  }
  static Status decode(Context<Cuda>& ctx, const Codec& codec, const PageBatch& batch) {
    using namespace cuda_kernels;
    if (const Status s = check(codec, batch); s != Status::ok) return s;
    return cuda::launch(ctx, decode_rows<Codec>, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, sizeof(DecodeShared), codec, batch);
  }
};

/// Codecs of whole groups alone: `first` and `count` of every job are multiples of the group.
template <class Codec>
  requires(cuda_kernels::GroupCodec<Codec> && !cuda_kernels::RowCodec<Codec>)
struct PageCodec<Cuda, Codec> {
  static Status encode(Context<Cuda>& ctx, const Codec& codec, const PageBatch& batch, index_t* repaired = nullptr) {
    using namespace cuda_kernels;
    if (const Status s = check(codec, batch); s != Status::ok) return s;
    return encode_groups_of(ctx, codec, batch, repaired);
  }
  static Status decode(Context<Cuda>& ctx, const Codec& codec, const PageBatch& batch) {
    using namespace cuda_kernels;
    if (const Status s = check(codec, batch); s != Status::ok) return s;
    return cuda::launch(ctx, decode_rows<Codec>, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, sizeof(DecodeShared), codec, batch);
  }
};

template <int Bits>
struct PageCodec<Cuda, GroupInt<Bits>> {
  using Codec = GroupInt<Bits>;

  /// On the channel axis `first` and `count` of every job are multiples of the group.
  static Status encode(Context<Cuda>& ctx, const Codec& codec, const PageBatch& batch, index_t* repaired = nullptr) {
    using namespace cuda_kernels;
    if (const Status s = check(codec, batch); s != Status::ok) return s;
    if (codec.axis == GroupAxis::token)
      return cuda::launch(ctx, encode_rows<Codec>, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads,
                          sizeof(RowsShared<Codec>), codec, batch, repaired);
    return encode_groups_of(ctx, codec, batch, repaired);
  }
  static Status decode(Context<Cuda>& ctx, const Codec& codec, const PageBatch& batch) {
    using namespace cuda_kernels;
    if (const Status s = check(codec, batch); s != Status::ok) return s;
    return cuda::launch(ctx, decode_rows<Codec>, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, sizeof(DecodeShared), codec, batch);
  }
};

}  // namespace kvcondense::prim
