#pragma once

#include <cstddef>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>

// How a warp's tiles of slots lie in shared memory. A stage of the ring holds one tile:
//   rows of keys, rows of values    4 kB each, rows `Dim` numbers long whatever heads have
//   parameters of keys, of values   channel axis: `Dim` scales, then as many offsets; token axis: those of slot after slot
//   what the tile is

namespace kvcondense::prim::cuda_kernels {

inline constexpr int unit = 8;  ///< channels that are unpacked together

inline constexpr int ring_stages = 2, ring_rows = 4096, ring_slots = 64;
inline constexpr int ring_steps = ring_slots / 16;  ///< tensor cores take 16 slots at a time

/// Bits of a stored number, and whether tiles are made of them.
template <class Codec>
inline constexpr int stored_bits = 0;
template <>
inline constexpr int stored_bits<ExactRows> = 16;
template <int Bits>
inline constexpr int stored_bits<GroupInt<Bits>> = Bits == 2 || Bits == 4 || Bits == 8 ? Bits : 0;

/// Bytes of a row in a stage, and how many of them fit.
KVCONDENSE_HD constexpr int padded_row(int bits, int dim) { return dim * bits / 8; }
KVCONDENSE_HD constexpr int rows_that_fit(int bits, int dim) {
  const int n = ring_rows / padded_row(bits, dim);
  return n < ring_slots ? n : ring_slots;
}

/// A 16-byte chunk of a stage's rows goes to another place of its 128-byte line, so that lanes which read together
/// meet no bank twice. Chunk `c` of `row`, rows of `Row` bytes.
template <int Row>
KVCONDENSE_HD constexpr int value_chunk(int row, int c) {
  const int linear = row * (Row / 16) + c;
  return Row > 16 ? linear ^ (row >> 1 & 3) << 1 : linear;
}
/// Keys are read in the order of a lane's units: `Together` units of a lane lie side by side.
template <int Row, int Together>
KVCONDENSE_HD constexpr int key_chunk(int row, int c) {
  const int linear = row * (Row / 16) + c;
  if (Row < 128) return linear;
  return Together == 1 ? linear ^ (row & 1) << 2 : Together == 2 ? linear ^ (row & 1) : linear ^ (c >> 3 & 1) ^ (row & 1) << 1;
}
/// Parameters of the channel axis, whose chunks are read as keys' units are.
KVCONDENSE_HD constexpr int param_chunk(int c) { return c ^ (c >> 3 & 1); }

/// One column's part of a stage that depends on its codec.
struct PartLayout {
  int width = 0;  ///< numbers of a row
  int row_bytes = 0, params_at = 0, group_bytes = 0;  ///< of a page
  int group_slots = 1, group_shift = 0;               ///< -1: no power of two
  int params = 0;       ///< bytes of all parameters in a stage
  int stride = 0;       ///< of a slot's parameters on the token axis
  int most = 0;         ///< codes of a tile; on the channel axis those of one group
  int row_grain = 16;   ///< bytes of one asynchronous copy: what pages are aligned to
  int param_grain = 16; ///< 2: too small for one
};
struct RingLayout {
  PartLayout key, value;
  int scores = 0;  ///< where scores wait among the rows of keys, 512 bytes for 16 slots
  int stage = 0;
};

constexpr int grain_of(index_t bytes) {
  return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : bytes % 4 == 0 ? 4 : 2;
}

/// All but `params`.
inline PartLayout part_layout(const ExactRows&, index_t, index_t, int) { return {}; }
template <int Bits>
PartLayout part_layout(const GroupInt<Bits>& codec, index_t page_slots, index_t dim, int padded) {
  PartLayout p;
  const index_t group = codec.group_bytes(dim);
  p.width = static_cast<int>(dim);
  p.row_bytes = static_cast<int>(codec.row_bytes(dim));
  p.params_at = static_cast<int>(codec.params_at(page_slots, dim));
  p.group_bytes = static_cast<int>(group);
  p.group_slots = static_cast<int>(codec.group_slots());
  while (p.group_shift >= 0 && 1 << p.group_shift != p.group_slots) p.group_shift = 1 << p.group_shift < p.group_slots ? p.group_shift + 1 : -1;
  p.row_grain = grain_of(codec.row_bytes(dim));
  p.param_grain = grain_of(codec.params_at(page_slots, dim) | group);
  p.stride = static_cast<int>((group + 3) / 4 * 4);
  const int fit = rows_that_fit(Bits, padded);
  p.most = codec.axis == GroupAxis::channel && p.group_slots < fit ? p.group_slots : fit;
  return p;
}
/// `slots`: of a tile, at most.
inline int params_in_stage(const ExactRows&, const PartLayout&, int, int) { return 0; }
template <int Bits>
int params_in_stage(const GroupInt<Bits>& codec, const PartLayout& p, int padded, int slots) {
  return codec.axis == GroupAxis::channel ? 4 * padded : (slots + 15) / 16 * 16 * p.stride;
}

/// A column as it is stored: its codec, slots of its pages, numbers of its coded rows.
template <class Codec>
struct StoredColumn {
  const Codec& codec;
  index_t page_slots, width;
};
/// `padded`, `coded`: numbers of exact rows and of coded ones in a stage.
template <class KeyCodec, class ValueCodec>
RingLayout ring_layout(const StoredColumn<KeyCodec>& keys, const StoredColumn<ValueCodec>& values, int padded, int coded) {
  RingLayout r{part_layout(keys.codec, keys.page_slots, keys.width, coded), part_layout(values.codec, values.page_slots, values.width, coded), 0, 0};
  const int exact = rows_that_fit(16, padded), least = r.key.most < r.value.most ? r.key.most : r.value.most, slots = least > exact ? least : exact;
  r.key.params = params_in_stage(keys.codec, r.key, coded, slots), r.value.params = params_in_stage(values.codec, r.value, coded, slots);
  // Scores take the place of keys that were read; where rows are shorter than scores, that behind the rows.
  constexpr int row = padded_row(stored_bits<KeyCodec>, 64);
  static_assert(row >= 32 || ring_slots * row + 512 * ring_steps <= ring_rows);
  if (padded_row(stored_bits<KeyCodec>, coded) < 32) r.scores = ring_slots * row;
  r.stage = (2 * ring_rows + r.key.params + r.value.params + 16 + 127) / 128 * 128;
  return r;
}
template <class KeyCodec, class ValueCodec>
RingLayout ring_layout(const KeyCodec& keys, index_t key_slots, const ValueCodec& values, index_t value_slots, index_t dim, int padded) {
  return ring_layout(StoredColumn<KeyCodec>{keys, key_slots, dim}, StoredColumn<ValueCodec>{values, value_slots, dim}, padded, padded);
}

}  // namespace kvcondense::prim::cuda_kernels
