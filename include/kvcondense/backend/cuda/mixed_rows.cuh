#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/group_bits.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/mixed_rows.hpp>
#include <kvcondense/prim/rank_bits.hpp>

// Groups of slots of which those with the largest scores have more bits: a map says which, each class lies in rows of its own.

namespace kvcondense::prim {

/// MixedRows of two widths of groups of numbers, which kernels learn when they run: the form `minimum`, parameters in halves, a group a row or, along
/// slots, a class.
struct MixedForm {
  static constexpr index_t most_group = 256;

  std::int32_t high_bits = 4, low_bits = 2, group = 64, high_slots = 16;
  GroupAxis axis = GroupAxis::token;

  KVCONDENSE_HD constexpr index_t bits(bool high) const { return high ? high_bits : low_bits; }
  KVCONDENSE_HD constexpr index_t class_slots(bool high) const { return high ? high_slots : group - high_slots; }
  KVCONDENSE_HD static constexpr index_t aligned(index_t bytes) { return (bytes + 3) / 4 * 4; }
  /// Of a class: where its parameters begin, and its size.
  KVCONDENSE_HD constexpr index_t params_at(bool high, index_t dim) const { return aligned(class_slots(high) * ((dim * bits(high) + 7) / 8)); }
  KVCONDENSE_HD constexpr index_t class_bytes(bool high, index_t dim) const {
    return params_at(high, dim) + 2 * size_of(ParamType::f16) * (axis == GroupAxis::channel ? dim : class_slots(high));
  }
  KVCONDENSE_HD constexpr index_t class_at(bool high, index_t dim) const { return aligned((group + 7) / 8) + (high ? 0 : class_bytes(true, dim)); }

  KVCONDENSE_HD constexpr index_t group_slots() const { return group; }
  KVCONDENSE_HD constexpr index_t group_bytes(index_t dim) const { return class_at(false, dim) + class_bytes(false, dim); }
  constexpr std::size_t page_bytes(index_t slots, index_t dim) const { return static_cast<std::size_t>((slots + group - 1) / group * group_bytes(dim)); }
  constexpr bool valid(index_t dim) const { return dim >= 1 && dim <= max_head_dim && group <= most_group && high_slots >= 1 && high_slots < group; }
  constexpr std::int64_t fingerprint() const {
    return mix_fingerprints(high_bits * 16 + low_bits, (group * std::int64_t{1024} + high_slots) * 2 + static_cast<int>(axis));
  }
};

template <int High, int Low>
struct DeviceForm<MixedRows<GroupInt<High>, GroupInt<Low>>> {
  using Codec = MixedRows<GroupInt<High>, GroupInt<Low>>;
  using type = MixedForm;
  static index_t floats(const Codec&, index_t) { return 0; }
  static void fill(const Codec&, index_t, float*) {}
  static type of(const Codec& c, const float*, index_t, index_t) {
    return {High, Low, static_cast<std::int32_t>(c.group), static_cast<std::int32_t>(c.high_slots), c.high.axis};
  }
};

/// Those that a MixedForm describes.
template <int High, int Low>
constexpr bool table_serves(const MixedRows<GroupInt<High>, GroupInt<Low>>& codec) {
  const auto plain = [&](const auto& c, index_t slots) {
    return c.axis == codec.high.axis && c.group_size == (c.axis == GroupAxis::channel ? slots : 0) && c.form == GroupForm::minimum &&
           c.params == ParamType::f16 && c.rounding == Rounding::half_even && c.layout == CodeLayout::rows;
  };
  return codec.group <= MixedForm::most_group && plain(codec.high, codec.high_slots) && plain(codec.low, codec.low_slots());
}

namespace cuda_kernels {

template <>
inline constexpr bool codes_groups<MixedForm> = true;
template <>
inline constexpr int group_blocks<MixedForm> = 3;

/// Rows of one class of a group, from its list of them.
template <class Rows>
struct ClassRows {
  static constexpr bool counted = Rows::counted;
  const Rows& rows;
  const std::uint8_t* list;
  int begin;

  __device__ auto row(int i) const { return rows.row(begin + list[i]); }
};

template <>
struct RowPage<MixedForm> {
  using ClassPage = RowPage<Tabled<GroupBits>>;
  static constexpr int map_bits = 32, map_words = static_cast<int>(MixedForm::most_group) / map_bits;

  MixedForm codec;
  std::byte* data;
  int slots, dim;

  __device__ RowPage(const MixedForm& c, std::byte* page, int page_slots, int row) : codec(c), data(page), slots(page_slots), dim(row) {}
  /// The group of a slot: its map first.
  __device__ std::byte* group_of(int slot) const { return data + slot / codec.group * static_cast<int>(codec.group_bytes(dim)); }
  __device__ ClassPage class_of(std::byte* group, bool high) const {
    const bool along = codec.axis == GroupAxis::channel;
    const int n = static_cast<int>(codec.class_slots(high)), channels = along ? 1 : dim;
    return ClassPage(BitRows{group + codec.class_at(high, dim), n, dim, static_cast<int>(codec.bits(high)), along ? n : 1, channels, dim / channels, ParamType::f16});
  }
  __device__ static bool in_map(const std::uint32_t* map, int i) { return (map[i / map_bits] >> (i % map_bits) & 1u) != 0; }
  /// Slots of the better class in front of one.
  __device__ static int high_before(const std::uint32_t* map, int i) {
    int n = 0;
    for (int w = 0; w < i / map_bits; ++w) n += __popc(map[w]);
    return n + __popc(map[i / map_bits] & ((1u << (i % map_bits)) - 1u));
  }
  __device__ const std::uint32_t* map_of(int slot) const { return reinterpret_cast<const std::uint32_t*>(group_of(slot)); }

  /// A score that puts a slot into its class again.
  __device__ float grade(int slot) const { return in_map(map_of(slot), slot % codec.group) ? 1.0f : 0.0f; }
  __device__ void load(int slot, float* row) const {
    const int i = slot % codec.group, before = high_before(map_of(slot), i), better = codec.high_slots, others = codec.group - better;
    // A map of a forged file may name too many or too few: no class gets more slots than it has rows.
    const bool high = before < better && (in_map(map_of(slot), i) || i - before >= others);
    const int rank = high ? (before > i - others ? before : i - others) : i - (before < better ? before : better);
    const ClassPage page = class_of(group_of(slot), high);
    const std::byte *const codes = page.row(rank), *const params = page.params_of(rank);
    const auto param = [&](int at) { return read_number(DType::f16, params, at); };
    const bool along = codec.axis == GroupAxis::channel;  // a channel has a scale and an offset, else the row has one of each
    float scale = param(0), offset = param(1);
    for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) {
      if (along) scale = param(c), offset = param(dim + c);
      row[c] = __fadd_rn(__fmul_rn(static_cast<float>(row_code(codes, page.bits, c)), scale), offset);
    }
  }

  struct GroupScratch {
    union {
      std::uint32_t key[MixedForm::most_group];
      typename ClassPage::Scratch of_warp[channel_threads / cuda::warp_lanes];
    };
    std::uint32_t map[map_words];
    std::uint8_t list[MixedForm::most_group];  ///< slots of the better class, in order, then the others
    ChannelShared classes;
  };
  /// The largest scores; of equal ones the newer slots.
  template <class Rows>
  __device__ int encode_group(int slot, const Rows& rows, int begin, GroupScratch& shared) const {
    const int better = codec.high_slots;
    std::byte* const at = group_of(slot);
    choose(rows, begin, reinterpret_cast<std::uint32_t*>(at), shared);
    int bad = 0;
    for (int part = 0; part < 2; ++part) {
      const bool high = part == 0;
      const ClassRows<Rows> some{rows, shared.list + (high ? 0 : better), begin};
      const ClassPage page = class_of(at, high);
      clear_gap(at, high);
      if (codec.axis == GroupAxis::channel) {
        bad += page.encode_group(0, some, 0, shared.classes);
        __syncthreads();
        continue;
      }
      const int warp = cuda::warp_of_block();
      for (int i = warp; i < page.slots; i += channel_threads / cuda::warp_lanes) {
        const int repaired = page.encode(i, some, i, shared.of_warp[warp]);
        bad += cuda::lane_of_warp() == 0 ? repaired : 0;
        __syncwarp();  // codes of the row are written before the next one's stand in their place
      }
    }
    return codec.axis == GroupAxis::channel ? bad : cuda::block_sum<int, channel_threads>(bad, shared.classes.sums);
  }

 private:
  /// The map of a group, on its page too, and the lists of its classes. A thread a slot; begins and ends with nobody in `shared`.
  template <class Rows>
  __device__ void choose(const Rows& rows, int begin, std::uint32_t* map, GroupScratch& shared) const {
    static_assert(channel_threads >= MixedForm::most_group);
    const int c = static_cast<int>(threadIdx.x), n = codec.group;
    const std::uint32_t key = c < n ? rank_bits(rows.score(begin + c)) : 0u;
    if (c < n) shared.key[c] = key;
    __syncthreads();
    int ahead = 0;
    for (int d = 0; c < n && d < n; ++d) ahead += static_cast<int>(shared.key[d] > key || (shared.key[d] == key && d > c));
    const std::uint32_t word = __ballot_sync(cuda::full_warp, static_cast<int>(c < n && ahead < codec.high_slots));
    if (cuda::lane_of_warp() == 0 && c < n) shared.map[c / map_bits] = map[c / map_bits] = word;
    __syncthreads();
    if (c < n) {
      const int before = high_before(shared.map, c);
      shared.list[in_map(shared.map, c) ? before : codec.high_slots + c - before] = static_cast<std::uint8_t>(c);
    }
    __syncthreads();
  }
  /// Bytes between codes and parameters are nobody's.
  __device__ void clear_gap(std::byte* group, bool high) const {
    const int codes = static_cast<int>(codec.class_slots(high)) * ((dim * static_cast<int>(codec.bits(high)) + 7) / 8), at = codes + static_cast<int>(threadIdx.x);
    if (at < static_cast<int>(codec.params_at(high, dim))) group[codec.class_at(high, dim) + at] = std::byte{};
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
