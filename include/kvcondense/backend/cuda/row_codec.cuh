#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/row_transform.hpp>

// How a codec whose slots are independent comes to the device: by a RowPage of its own, and nothing else.
//
//   RowPage(codec, page, slots, dim)
//   data, dim                                       the page, numbers of a row
//   value(slot, c) -> float                         the number, by the arithmetic of the CPU
//   load(slot, row)                                 instead, or where it says more than `value`: a warp makes a row in shared memory
//   slot_bytes(slot) -> SlotBytes                   what moves with a slot
//   Scratch                                         shared memory of a warp that codes a row
//   encode(slot, rows, i, scratch) -> int           a warp codes rows.row(i), whose numbers are row(i)(c); how many had to be repaired, in every lane
//
// A codec whose groups of slots share what their numbers are made of (scales along slots, strong channels, angles) cannot move a slot alone. It has `value`
// or `load`, data and dim as above, says `codes_groups<C>`, and has instead of the others, or beside them where groups are a matter of how it is set,
//
//   GroupScratch                                    shared memory of a block that codes a group
//   behind(codec) -> std::size_t                    on the host, may be left out: bytes behind it, which follow from how the codec is set
//   encode_group(slot, rows, begin, scratch) -> int  a block of `channel_threads` codes rows begin, begin + 1, ... into the group of slots from `slot` on; how
//                                                   many numbers had to be repaired, in every thread. It begins and ends with nobody in `scratch`.
//   grade(slot) -> float                            may be left out: a codec that tells slots of a group apart by rows.score(i) says a score that does it again
//
// Without a table it stands in `GroupedCodecs` (slot_rows.cuh).
//
// A codec whose numbers depend on tables (levels, codewords, groups of channels), or whose heads have some of their own, has besides
//
//   CodecTable<C>::floats(codec, dim) -> index_t    numbers of a head's table
//   CodecTable<C>::fill(codec, dim, float*)         on the host
//   CodecTable<C>::serves(codec) -> bool            may be left out: whether kernels read it, whatever it is set to
//   CodecTable<C>::sizes_differ                     may be left out: true where heads of a layer may store rows in different numbers of bytes
//
// and stands in `TabledCodecs` (slot_rows.cuh); its RowPage<Tabled<C>> is made of a head's table alone too: RowPage(table, page, slots, dim).

namespace kvcondense::prim {

template <class C>
struct CodecTable;

template <class C>
concept HasCodecTable = requires(const C c, index_t dim) { CodecTable<C>::floats(c, dim); };

/// A codec as kernels take it, with the tables of a layer's heads in device memory, `step` floats apart.
template <CodecDescription C>
struct Tabled {
  C codec{};
  const float* table = nullptr;
  index_t step = 0;  ///< 0: one for all heads
  index_t dim = 0;   ///< of the rows that the tables are for, which whoever made them has looked at
  int sharing = 1;   ///< heads of a kernel, one behind the other, that read one KV head: see `shared_by`

  constexpr std::size_t page_bytes(index_t slots, index_t n) const { return codec.page_bytes(slots, n); }
  constexpr index_t group_slots() const { return codec.group_slots(); }
  constexpr bool valid(index_t n) const { return table != nullptr && n == dim; }
  constexpr std::int64_t fingerprint() const { return codec.fingerprint(); }
};

/// What kernels take for a codec of a quant stage: `floats(codec, dim)` and `fill(codec, dim, out)` of its tables, 0 where it has none, and
/// `of(codec, table, step, dim)`.
template <class C>
struct DeviceForm {
  using type = C;
  static index_t floats(const C&, index_t) { return 0; }
  static void fill(const C&, index_t, float*) {}
  static const C& of(const C& codec, const float*, index_t, index_t) { return codec; }
};
template <class C>
struct TabledForm {
  using type = Tabled<C>;
  static index_t floats(const C& codec, index_t dim) { return CodecTable<C>::floats(codec, dim); }
  static void fill(const C& codec, index_t dim, float* out) { CodecTable<C>::fill(codec, dim, out); }
  static type of(const C& codec, const float* table, index_t step, index_t dim) { return {codec, table, step, dim}; }
};
template <HasCodecTable C>
struct DeviceForm<C> : TabledForm<C> {};
template <class T, class C>
struct DeviceForm<Transformed<T, C>> {
  using Inner = DeviceForm<C>;
  using type = Transformed<T, typename Inner::type>;
  static index_t floats(const Transformed<T, C>& c, index_t dim) { return Inner::floats(c.codec, c.transform.stored_dim(dim)); }
  static void fill(const Transformed<T, C>& c, index_t dim, float* out) { Inner::fill(c.codec, c.transform.stored_dim(dim), out); }
  static type of(const Transformed<T, C>& c, const float* table, index_t step, index_t dim) {
    return {c.transform, Inner::of(c.codec, table, step, c.transform.stored_dim(dim))};
  }
};
template <class C>
using DeviceCodec = typename DeviceForm<C>::type;

/// Whether kernels read a codec of a type that they know.
template <class C>
constexpr bool table_serves(const C& codec) {
  if constexpr (requires { CodecTable<C>::serves(codec); }) return CodecTable<C>::serves(codec);
  else return true;
}
template <class T, class C>
constexpr bool table_serves(const Transformed<T, C>& c) {
  return table_serves(c.codec);
}

/// Whether heads of a layer may store rows in different numbers of bytes.
template <class C>
inline constexpr bool table_sizes = requires { CodecTable<C>::sizes_differ; };
template <class T, class C>
inline constexpr bool table_sizes<Transformed<T, C>> = table_sizes<C>;

/// The codec of one head of a layer.
template <class C>
KVCONDENSE_HD inline const C& of_head(const C& codec, index_t) {
  return codec;
}
template <class C>
KVCONDENSE_HD inline Tabled<C> of_head(const Tabled<C>& codec, index_t head) {
  return {codec.codec, codec.table + static_cast<int>(head) / codec.sharing * codec.step, 0, codec.dim};
}
template <class T, class C>
KVCONDENSE_HD inline Transformed<T, C> of_head(const Transformed<T, C>& codec, index_t head) {
  return {codec.transform, of_head(codec.codec, head)};
}

/// The codec of a layer for kernels to which every KV head is `count` heads, as rows of selection are.
template <class C>
const C& shared_by(int, const C& codec) {
  return codec;
}
template <class C>
Tabled<C> shared_by(int count, Tabled<C> codec) {
  codec.sharing = count;
  return codec;
}
template <class T, class C>
Transformed<T, C> shared_by(int count, const Transformed<T, C>& codec) {
  return {codec.transform, shared_by(count, codec.codec)};
}

namespace cuda_kernels {

/// Codecs that have a RowPage.
template <class C>
concept RowCodec = requires(const RowPage<C>& page) { page.slot_bytes(0); } &&
                   (requires(const RowPage<C>& page) { page.value(0, 0); } || requires(const RowPage<C>& page, float* row) { page.load(0, row); });

/// Codecs that may code whole groups of slots alone.
template <class C>
inline constexpr bool codes_groups = false;
template <int Bits>
inline constexpr bool codes_groups<GroupInt<Bits>> = true;
template <class C>
concept GroupCodec = codes_groups<C> && requires { typename RowPage<C>::GroupScratch; };
/// Whether it tells slots apart by scores.
template <class C>
concept GradedCodec = GroupCodec<C> && requires(const RowPage<C>& page) { page.grade(0); };
/// Blocks that code groups which a multiprocessor is to hold: what a thread keeps in registers follows from it.
template <class C>
inline constexpr int group_blocks = 4;
template <class C>
inline constexpr int group_blocks<Tabled<C>> = 2;

/// Bytes of shared memory of a block that codes groups, at whose end the group's scratch is.
template <class Shared, class C>
std::size_t group_shared(const C& codec) {
  if constexpr (requires { RowPage<C>::behind(codec); }) return sizeof(Shared) + RowPage<C>::behind(codec);
  else return sizeof(Shared);
}

/// Whether slots share what their numbers are made of, so that codes cannot move alone.
template <class C>
constexpr bool shares_slots(const C& codec) {
  return codes_groups<DeviceCodec<C>> && (!RowCodec<DeviceCodec<C>> || codec.group_slots() > 1);
}
template <int Bits>
constexpr bool shares_slots(const GroupInt<Bits>& codec) {
  return codec.axis == GroupAxis::channel;
}
template <class T, class C>
constexpr bool shares_slots(const Transformed<T, C>& c) {
  return codes_groups<DeviceCodec<Transformed<T, C>>> && shares_slots(c.codec);
}

/// A slot's row as floats in shared memory. A warp; whole warps call it together, and a lane reads its own channels alone unless it waits.
template <class Page>
__device__ inline void load_row(const Page& page, int slot, float* row) {
  if constexpr (requires { page.load(slot, row); }) {
    page.load(slot, row);
  } else {
#pragma unroll 1
    for (int c = cuda::lane_of_warp(); c < page.dim; c += cuda::warp_lanes) row[c] = page.value(slot, c);
  }
}

/// Whether coding has to repair a number; `counted`: whoever stored the rows has counted those that are Inf or NaN.
__device__ inline int repairs(float x, bool counted) {
  constexpr std::uint32_t last = detail::bit_cast<std::uint32_t>(largest_coded), infinity = 0x7f800000u;
  const std::uint32_t size = detail::bit_cast<std::uint32_t>(x) & 0x7fffffffu;
  return static_cast<int>(counted ? size - last - 1 < infinity - last - 1 : size > last);
}

/// The range of numbers first, first + 1 ... below `end`, in every lane of a warp; `bad` counts this lane's that have to be repaired.
template <class X>
__device__ inline GroupRange warp_range(const X& x, int first, int end, bool counted, int& bad) {
  GroupRange range;
  for (int c = first + cuda::lane_of_warp(); c < end; c += cuda::warp_lanes) {
    range.include(x(c));
    bad += repairs(x(c), counted);
  }
  range.lo = cuda::warp_reduce(range.lo, [](float a, float b) { return a < b ? a : b; });
  range.hi = cuda::warp_max(range.hi);
  return range;
}

/// `cpu::clean_row` by a warp: NaN as 0, what is too large as the largest of the others. How many those were among this lane's.
template <class X>
__device__ inline int clean_row(const X& x, int dim, bool counted, float* out) {
  int bad = 0;
  const GroupRange range = warp_range(x, 0, dim, counted, bad);
  const float most = range.lo <= range.hi ? (range.hi < -range.lo ? -range.lo : range.hi) : 0.0f;
  for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) out[c] = limit_to(without_nan(x(c)), most);
  __syncwarp();
  return bad;
}

/// Code `index` of `bits` bits of a row of them.
__device__ inline int row_code(const std::byte* row, int bits, int index) {
  const int at = index * bits;
  const std::byte* from = row + at / 8;
  std::uint32_t word = static_cast<std::uint32_t>(from[0]);
  if (at % 8 + bits > 8) word |= static_cast<std::uint32_t>(from[1]) << 8;
  return static_cast<int>(word >> (at % 8) & ((1u << bits) - 1u));
}
/// `count` codes that stand one a byte become a row of `bits` bits each. A warp.
__device__ inline void pack_row(int bits, const std::uint8_t* codes, int count, std::byte* row) {
  for (int b = cuda::lane_of_warp(); b < (count * bits + 7) / 8; b += cuda::warp_lanes) row[b] = packed_byte(bits, codes, count, b);
}

// Halves at any byte.
__device__ inline float half_at(const std::byte* at) {
  return kvcondense::detail::half_value(static_cast<std::uint16_t>(static_cast<unsigned>(at[0]) | static_cast<unsigned>(at[1]) << 8));
}
/// What is stored of x; `bad` counts one that does not fit.
__device__ inline float put_half(std::byte* at, float x, int& bad) {
  bool saturated = false;
  const float kept = stored(ParamType::f16, x, saturated);
  const std::uint16_t bits = kvcondense::detail::half_bits(kept);
  at[0] = static_cast<std::byte>(bits & 255u), at[1] = static_cast<std::byte>(bits >> 8);
  bad += static_cast<int>(saturated);
  return kept;
}

/// Of the numbers below `count`, the one with the largest (or smallest) key(i), of equal ones the first; the same in every lane. A key is no NaN.
template <bool Largest, class Taken, class Key>
__device__ inline int first_extreme(int count, Taken&& taken, Key&& key) {
  std::uint64_t best = 0;
  for (int i = cuda::lane_of_warp(); i < count; i += cuda::warp_lanes) {
    if (taken(i)) continue;
    const float x = key(i);
    const std::uint32_t bits = detail::bit_cast<std::uint32_t>(x == 0.0f ? 0.0f : x);  // zeros are equal
    const std::uint32_t rank = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;             // ascending as the numbers do
    const std::uint64_t mine = static_cast<std::uint64_t>(Largest ? rank : ~rank) << 32 | (0xffffffffu - static_cast<std::uint32_t>(i));
    best = mine > best ? mine : best;
  }
  best = cuda::warp_reduce(best, [](std::uint64_t a, std::uint64_t b) { return a > b ? a : b; });
  return static_cast<int>(0xffffffffu - static_cast<std::uint32_t>(best));
}

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
