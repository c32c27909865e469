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

/// Rows of codes in the form `minimum`, rounded half to even, whose width and groups are numbers: pages of GroupInt in rows.
struct BitRows {
  std::byte* data;
  int slots, dim, bits;
  int group, channels, all_scales;  ///< slots and channels of a group of numbers, scales of a group of slots
  ParamType params;

  __device__ int group_slots() const { return group; }
  __device__ int row_bytes() const { return (dim * bits + 7) / 8; }
  __device__ int group_bytes() const { return 2 * all_scales * (params == ParamType::f32 ? 4 : 2); }
  __device__ std::byte* row(int slot) const { return data + slot * row_bytes(); }
  /// Scales of the group that a slot belongs to, then offsets.
  __device__ std::byte* params_of(int slot) const { return data + (slots * row_bytes() + 3) / 4 * 4 + slot / group * group_bytes(); }
  __device__ float value(int slot, int c) const {
    const std::byte* at = params_of(slot);
    const float scale = read_number(number_type(params), at, c / channels), offset = read_number(number_type(params), at, all_scales + c / channels);
    return __fadd_rn(__fmul_rn(static_cast<float>(row_code(row(slot), bits, c)), scale), offset);
  }

  // What coders of groups ask for, as of RowPage<GroupInt>.

  __device__ int group_channels() const { return channels; }
  __device__ int scales() const { return all_scales; }
  __device__ GroupParams fit(const GroupRange& range) const { return fit_group(GroupForm::minimum, bits, params, range); }
  /// That of eight bits, brought below 2^bits: only this limit depends on the width.
  __device__ int code_for(float x, float offset, float inverse) const {
    const std::int32_t code = code_of<8, GroupForm::minimum, Rounding::half_even>(x, offset, inverse), last = (1 << bits) - 1;
    return static_cast<int>(code < last ? code : last);
  }
  __device__ void write_params(int slot, int i, float scale, float offset) const {
    write_number(number_type(params), params_of(slot), i, scale);
    write_number(number_type(params), params_of(slot), all_scales + i, offset);
  }
  __device__ void write_codes(int slot, const std::uint8_t* codes, int thread, int threads) const {
    for (int b = thread; b < row_bytes(); b += threads) row(slot)[b] = packed_byte(bits, codes, dim, b);
  }
};

template <>
struct RowPage<Tabled<GroupBits>> : BitRows {
  __device__ RowPage(const float* table, std::byte* page, int page_slots, int row)
      : BitRows{page, page_slots, row, static_cast<int>(table[0]), static_cast<int>(table[1]), static_cast<int>(table[2]), static_cast<int>(table[3]),
                static_cast<ParamType>(static_cast<int>(table[4]))} {}
  __device__ explicit RowPage(const BitRows& part) : BitRows(part) {}
  __device__ RowPage(const Tabled<GroupBits>& c, std::byte* page, int page_slots, int row) : RowPage(c.table, page, page_slots, row) {}

  /// Of the token axis.
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), params_of(slot), row_bytes(), group_bytes()}; }

  struct Scratch {
    std::uint8_t codes[max_head_dim];
  };
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    return encode_groups(*this, slot, rows, i, s.codes);
  }
  using GroupScratch = ChannelShared;
  template <class Rows>
  __device__ int encode_group(int slot, const Rows& rows, int begin, GroupScratch& shared) const {
    return encode_channels(*this, slot, rows, begin, shared);
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
