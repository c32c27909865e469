#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/group_bits.hpp>

// Codes whose width is a number of each head: heads of a layer have rows of different sizes.

namespace kvcondense::prim {

/// Width, slots and channels of a group, scales of a group of slots, and the type of parameters.
template <>
struct CodecTable<GroupBits> {
  static constexpr bool sizes_differ = true;

  static bool serves(const GroupBits& codec) { return codec.form == GroupForm::minimum && codec.rounding == Rounding::half_even; }
  static index_t floats(const GroupBits&, index_t) { return 5; }
  static void fill(const GroupBits& codec, index_t dim, float* out) {
    codec.with([&](const auto& c) {
      out[0] = static_cast<float>(codec.bits), out[1] = static_cast<float>(c.group_slots()), out[2] = static_cast<float>(c.group_channels(dim));
      out[3] = static_cast<float>(c.scales(dim)), out[4] = static_cast<float>(c.params);
    });
  }
};

namespace cuda_kernels {

template <>
inline constexpr bool codes_groups<Tabled<GroupBits>> = true;

template <>
struct RowPage<Tabled<GroupBits>> {
  std::byte* data;
  int slots, dim, bits, group, channels, scales;
  ParamType params;

  __device__ RowPage(const float* table, std::byte* page, int page_slots, int row)
      : data(page), slots(page_slots), dim(row), bits(static_cast<int>(table[0])), group(static_cast<int>(table[1])), channels(static_cast<int>(table[2])),
        scales(static_cast<int>(table[3])), params(static_cast<ParamType>(static_cast<int>(table[4]))) {}
  __device__ RowPage(const Tabled<GroupBits>& c, std::byte* page, int page_slots, int row) : RowPage(c.table, page, page_slots, row) {}

  __device__ int group_slots() const { return group; }
  __device__ int row_bytes() const { return (dim * bits + 7) / 8; }
  __device__ int group_bytes() const { return 2 * scales * (params == ParamType::f32 ? 4 : 2); }
  __device__ std::byte* row(int slot) const { return data + slot * row_bytes(); }
  /// Scales of the group that a slot belongs to, then offsets.
  __device__ std::byte* params_of(int slot) const { return data + (slots * row_bytes() + 3) / 4 * 4 + slot / group * group_bytes(); }
  /// Of the token axis.
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), params_of(slot), row_bytes(), group_bytes()}; }
  __device__ float value(int slot, int c) const {
    const std::byte* at = params_of(slot);
    const float scale = read_number(number_type(params), at, c / channels), offset = read_number(number_type(params), at, scales + c / channels);
    return __fadd_rn(__fmul_rn(static_cast<float>(row_code(row(slot), bits, c)), scale), offset);
  }

  struct Scratch {
    std::uint8_t codes[max_head_dim];
  };
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    const auto x = rows.row(i);
    const int lane = cuda::lane_of_warp();
    int bad = 0;
    for (int j = 0; j < scales; ++j) {
      const GroupParams p = fit_group(GroupForm::minimum, bits, params, warp_range(x, j * channels, (j + 1) * channels, rows.counted, bad));
      if (lane == 0) bad += write_params(slot, j, p);
      for (int c = j * channels + lane; c < (j + 1) * channels; c += cuda::warp_lanes) s.codes[c] = code_for(x(c), p);
    }
    __syncwarp();
    pack_row(bits, s.codes, dim, row(slot));
    return cuda::warp_sum(bad);
  }

  using GroupScratch = ChannelShared;
  /// A thread a channel.
  template <class Rows>
  __device__ int encode_group(int slot, const Rows& rows, int begin, GroupScratch& s) const {
    const int c = static_cast<int>(threadIdx.x);
    int bad = 0;
    GroupParams p;
    if (c < dim) {
      GroupRange range;
      for (int i = 0; i < group; ++i) {
        const float x = rows.row(begin + i)(c);
        range.include(x);
        bad += repairs(x, rows.counted);
      }
      p = fit_group(GroupForm::minimum, bits, params, range);
      bad += write_params(slot, c, p);
    }
    for (int from = 0; from < group; from += channel_rows) {
      const int count = group - from < channel_rows ? group - from : channel_rows;
      for (int i = 0; i < count && c < dim; ++i) s.codes[i][c] = code_for(rows.row(begin + from + i)(c), p);
      __syncthreads();
      for (int i = cuda::warp_of_block(); i < count; i += channel_threads / cuda::warp_lanes) pack_row(bits, s.codes[i], dim, row(slot + from + i));
      __syncthreads();
    }
    return cuda::block_sum<int, channel_threads>(bad, s.sums);
  }

 private:
  __device__ int write_params(int slot, int i, const GroupParams& p) const {
    write_number(number_type(params), params_of(slot), i, p.scale);
    write_number(number_type(params), params_of(slot), scales + i, p.offset);
    return static_cast<int>(p.saturated);
  }
  /// The code of eight bits, brought below 2^bits: only that limit depends on the width.
  __device__ std::uint8_t code_for(float x, const GroupParams& p) const {
    const std::int32_t code = code_of<8, GroupForm::minimum, Rounding::half_even>(x, p.offset, p.inverse), last = (1 << bits) - 1;
    return static_cast<std::uint8_t>(code < last ? code : last);
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
