#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/boosted_int.hpp>

namespace kvcondense::prim::cuda_kernels {

template <int Low, int High>
inline constexpr bool codes_groups<BoostedInt<Low, High>> = true;

/// A group of slots names its strong channels and keeps their high bits in a plane of their own.
template <int Low, int High>
struct RowPage<BoostedInt<Low, High>> {
  using Codec = BoostedInt<Low, High>;

  Codec codec;
  std::byte* data;
  int slots, dim;

  __device__ RowPage(const Codec& c, std::byte* page, int page_slots, int row) : codec(c), data(page), slots(page_slots), dim(row) {}
  __device__ std::byte* low(int slot) const { return data + slot * static_cast<int>(codec.low_bytes(dim)); }
  __device__ std::byte* high(int slot) const { return data + codec.high_at(slots, dim) + slot * static_cast<int>(codec.high_bytes(dim)); }
  /// Of the group that a slot belongs to: scales, minima, ranks; at any byte, where rows are of an odd number of channels.
  __device__ std::byte* params(int slot) const {
    return data + codec.params_at(slots, dim) + slot / static_cast<int>(codec.group_size) * static_cast<int>(codec.group_bytes(dim));
  }

  __device__ float value(int slot, int c) const {
    const std::byte* const at = params(slot);
    const int rank = static_cast<int>(at[4 * dim + c]);
    int code = row_code(low(slot), Low, c);
    if (rank < static_cast<int>(codec.boosted(dim))) code |= row_code(high(slot), High, rank) << Low;
    return __fadd_rn(__fmul_rn(static_cast<float>(code), half_at(at + 2 * c)), half_at(at + 2 * (dim + c)));
  }

  struct GroupScratch {
    cuda::BlockScratch<int, channel_threads> sums;
    double strength[max_head_dim];
    std::uint8_t codes[channel_rows][max_head_dim], high[channel_rows][max_head_dim];
  };
  /// A thread a channel.
  template <class Rows>
  __device__ int encode_group(int slot, const Rows& rows, int begin, GroupScratch& shared) const {
    const int n = static_cast<int>(codec.group_size), c = static_cast<int>(threadIdx.x), boosted = static_cast<int>(codec.boosted(dim));
    const bool mine = c < dim;
    int bad = 0;
    GroupRange range;
    if (mine) {
      double sum = 0.0;
      for (int i = 0; i < n; ++i) {
        const float x = rows.row(begin + i)(c);
        range.include(x);
        bad += repairs(x, rows.counted);
        sum += needs_repair(x) ? 0.0 : fabs(static_cast<double>(x));
      }
      shared.strength[c] = sum;
    }
    __syncthreads();
    int rank = 0;  // stronger channels, and of equals those in front
    for (int d = 0; mine && d < dim; ++d) rank += static_cast<int>(shared.strength[d] > shared.strength[c] || (shared.strength[d] == shared.strength[c] && d < c));
    const bool strong = mine && rank < boosted;
    GroupParams p;
    if (mine) {
      p = fit_group(GroupForm::minimum, strong ? Low + High : Low, ParamType::f16, range);
      bad += static_cast<int>(p.saturated);
    }
    for (int from = 0; from < n; from += channel_rows) {
      const int count = n - from < channel_rows ? n - from : channel_rows;
      for (int i = 0; mine && i < count; ++i) {
        const int code = code_for(rows.row(begin + from + i)(c), p, strong);
        shared.codes[i][c] = static_cast<std::uint8_t>(code & ((1 << Low) - 1));
        if (strong) shared.high[i][rank] = static_cast<std::uint8_t>(code >> Low);
      }
      __syncthreads();
      for (int i = cuda::warp_of_block(); i < count; i += channel_threads / cuda::warp_lanes) {
        pack_row(Low, shared.codes[i], dim, low(slot + from + i));
        pack_row(High, shared.high[i], boosted, high(slot + from + i));
      }
      __syncthreads();
    }
    if (mine) {
      std::byte* const at = params(slot);
      put_half(at + 2 * c, p.scale, bad), put_half(at + 2 * (dim + c), p.offset, bad);  // both are halves already
      at[4 * dim + c] = static_cast<std::byte>(strong ? rank : boosted);
    }
    return cuda::block_sum<int, channel_threads>(bad, shared.sums);
  }

 private:
  __device__ int code_for(float x, const GroupParams& p, bool strong) const {
    return with_rounding(codec.rounding, [&]<Rounding Rule>() {
      return static_cast<int>(strong ? code_of<Low + High, GroupForm::minimum, Rule>(x, p.offset, p.inverse) : code_of<Low, GroupForm::minimum, Rule>(x, p.offset, p.inverse));
    });
  }
};

}  // namespace kvcondense::prim::cuda_kernels
