#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/sign_sketch.cuh>
#include <kvcondense/prim/sign_sketch.hpp>

// Rows that are signs and lengths alone, of most channels and of the strong ones of their group.

namespace kvcondense::prim {

/// Two sketches, how many channels are strong, and the slots of a group.
template <>
struct CodecTable<SketchRows> {
  static constexpr int strong_at = cuda_kernels::WarpSketch::floats, channels_at = 2 * strong_at;

  static bool serves(const SketchRows& codec) { return codec.sketch.matrix == nullptr && codec.strong.matrix == nullptr; }
  static index_t floats(const SketchRows&, index_t) { return channels_at + 2; }
  static void fill(const SketchRows& codec, index_t, float* out) {
    cuda_kernels::WarpSketch::fill(codec.sketch, out), cuda_kernels::WarpSketch::fill(codec.strong, out + strong_at);
    out[channels_at] = static_cast<float>(codec.channels), out[channels_at + 1] = static_cast<float>(codec.group_slots());
  }
};

namespace cuda_kernels {

template <>
inline constexpr bool codes_groups<Tabled<SketchRows>> = true;

template <>
struct RowPage<Tabled<SketchRows>> {
  using Table = CodecTable<SketchRows>;

  const float* table;
  std::byte* data;
  int dim, slots, channels, group, bits, strong_bits;

  __device__ RowPage(const float* of_head, std::byte* page, int page_slots, int row)
      : table(of_head), data(page), dim(row), slots(page_slots), channels(static_cast<int>(of_head[Table::channels_at])), group(static_cast<int>(of_head[Table::channels_at + 1])),
        bits(WarpSketch::bits(of_head)), strong_bits(channels == 0 ? 0 : WarpSketch::bits(of_head + Table::strong_at)) {}
  __device__ RowPage(const Tabled<SketchRows>& c, std::byte* page, int page_slots, int row) : RowPage(c.table, page, page_slots, row) {}

  __device__ int group_slots() const { return group; }
  __device__ int row_bytes() const { return WarpSketch::row_bytes(bits) + WarpSketch::row_bytes(strong_bits); }
  __device__ std::byte* row(int slot) const { return data + slot * row_bytes(); }
  __device__ std::byte* strong_signs(int slot) const { return row(slot) + bits / 8; }
  __device__ std::byte* length(int slot) const { return strong_signs(slot) + strong_bits / 8; }
  /// The strong channels of a slot's group, ascending, a byte each.
  __device__ std::byte* strong_channels(int slot) const { return data + slots * row_bytes() + slot / group * channels; }
  /// Without strong channels.
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), nullptr, row_bytes(), 0}; }

  __device__ void load(int slot, float* numbers) const {
    for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) numbers[c] = 0.0f;
    add_sketches(table, {{row(slot), strong_signs(slot)}, length(slot), strong_channels(slot), channels}, dim, numbers);
  }

  struct Scratch {
    float clean[max_head_dim];
    WarpSketch::Scratch sketch;
  };
  /// Without strong channels.
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    int bad = clean_row(rows.row(i), dim, rows.counted, s.clean);
    bad += write_sketch(table, s.clean, dim, row(slot), length(slot), s.sketch);
    return cuda::warp_sum(bad);
  }

  static constexpr int warps = channel_threads / cuda::warp_lanes;
  struct GroupScratch {
    cuda::BlockScratch<int, channel_threads> sums;
    double square[max_head_dim];
    float most[channel_rows];  ///< largest numbers of rows, which those take that have to be repaired
    bool strong[max_head_dim];
    struct OfWarp {
      float clean[max_head_dim], part[max_head_dim];
      WarpSketch::Scratch sketch;
    } of_warp[warps];
  };
  template <class Rows>
  __device__ int encode_group(int slot, const Rows& rows, int begin, GroupScratch& s) const {
    find_strong(slot, rows, begin, s);
    auto& own = s.of_warp[cuda::warp_of_block()];
    int bad = 0;
    for (int i = cuda::warp_of_block(); i < group; i += warps) {
      bad += clean_row(rows.row(begin + i), dim, rows.counted, own.clean);
      const auto write = [&](const float* to, bool which, std::byte* signs, std::byte* size) {
        for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) own.part[c] = s.strong[c] == which ? own.clean[c] : 0.0f;
        __syncwarp();
        bad += write_sketch(to, own.part, dim, signs, size, own.sketch);
        __syncwarp();
      };
      write(table, false, row(slot + i), length(slot + i));
      write(table + Table::strong_at, true, strong_signs(slot + i), length(slot + i) + 2);
    }
    return cuda::block_sum<int, channel_threads>(bad, s.sums);
  }

 private:
  /// The channels of largest length in a group, of equal ones the first, into the page and the scratch. All threads of a block, a barrier behind it.
  template <class Rows>
  __device__ void find_strong(int slot, const Rows& rows, int begin, GroupScratch& s) const {
    const int c = static_cast<int>(threadIdx.x);
    double square = 0.0;  // in the order of slots
    for (int from = 0; from < group; from += channel_rows) {
      const int count = group - from < channel_rows ? group - from : channel_rows;
      for (int i = cuda::warp_of_block(); i < count; i += warps) {
        int bad = 0;
        const GroupRange range = warp_range(rows.row(begin + from + i), 0, dim, rows.counted, bad);
        if (cuda::lane_of_warp() == 0) s.most[i] = range.lo <= range.hi ? (range.hi < -range.lo ? -range.lo : range.hi) : 0.0f;
      }
      __syncthreads();
      for (int i = 0; i < count && c < dim; ++i) {
        const auto x = static_cast<double>(limit_to(without_nan(rows.row(begin + from + i)(c)), s.most[i]));
        square += x * x;
      }
      __syncthreads();
    }
    if (c < dim) s.square[c] = square;
    __syncthreads();
    if (c < dim) {
      int stronger = 0;
      for (int d = 0; d < dim; ++d) stronger += static_cast<int>(s.square[d] > square || (s.square[d] == square && d < c));
      s.strong[c] = stronger < channels;
    }
    __syncthreads();
    if (c < dim && s.strong[c]) {
      int before = 0;
      for (int d = 0; d < c; ++d) before += static_cast<int>(s.strong[d]);
      strong_channels(slot)[before] = static_cast<std::byte>(c);
    }
    __syncthreads();
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
