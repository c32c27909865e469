#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/dialect.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/backend/cuda/ring_layout.cuh>
#include <kvcondense/prim/slot_runs.hpp>

// A warp's way through consecutive slots of a head: tiles of them are copied asynchronously from pages into a ring in
// shared memory that no other warp touches, and taken out in order. A tile is one kind: its keys are all codes or all
// exact, so are its values, and codes of the channel axis are of one group. It ends where that ends.

namespace kvcondense::prim::cuda_kernels {

/// A row and its parameters. No parameters: a row of exact numbers.
struct RowAt {
  const std::byte* row = nullptr;
  const std::byte* params = nullptr;
};

/// The place in a page of codes or of exact rows of `dim` halves.
template <class Codec>
__device__ inline RowAt row_at(const PartLayout& layout, int dim, const SlotRun& run, int place) {
  if (std::is_same_v<Codec, ExactRows> || !run.coded) return {run.page + static_cast<std::size_t>(place) * static_cast<std::size_t>(2 * dim), nullptr};
  const int group = layout.group_shift >= 0 ? place >> layout.group_shift : place / layout.group_slots;
  return {run.page + place * layout.row_bytes, run.page + layout.params_at + group * layout.group_bytes};
}

/// `grain` bytes, or as many zeros.
__device__ inline void copy_grain(std::byte* to, const std::byte* from, int grain, bool take = true) {
  if (grain == 16) cuda::copy_async<16>(to, from, take);
  else if (grain == 8) cuda::copy_async<8>(to, from, take);
  else if (grain == 4) cuda::copy_async<4>(to, from, take);
  else *reinterpret_cast<std::uint16_t*>(to) = take ? *reinterpret_cast<const std::uint16_t*>(from) : std::uint16_t{0};
}

/// One column of the warp's slots: exact rows of `Dim` numbers, coded ones of `Coded`, padded. A lane has slots `lane` and `lane + 32` of a tile.
template <class Codec, int Dim, int Coded = Dim>
struct RingColumn {
  static constexpr int bits = stored_bits<Codec>, lane_slots = rows_that_fit(bits, Coded) > 32 ? 2 : 1;
  static constexpr bool exact_only = std::is_same_v<Codec, ExactRows>;

  const Codec& codec;
  PartLayout layout;
  int dim;             ///< of exact rows
  const SlotRun* run;  ///< of the first slot that is not yet in the ring
  int left;            ///< runs of the head from there on

  int near[lane_slots] = {};  ///< runs between `run` and the one of the lane's slot
  RowAt at[lane_slots];

  __device__ RingColumn(const Codec& c, const PartLayout& l, const ColumnRuns& column, index_t head, int slot, int width)
      : codec(c), layout(l), dim(width), run(&run_of(column, head, slot)), left(static_cast<int>(column.runs + column.offset[head + 1] - run)) {}

  /// Looks for the lane's slots of a tile that begins at `first`; behind `end` the last one again.
  __device__ void find(int first, int end) {
    int from = 0;
#pragma unroll
    for (int i = 0; i < lane_slots; ++i) {
      const int wanted = first + cuda::lane_of_warp() + 32 * i, slot = wanted < end ? wanted : end - 1;
      int step = 1;
      for (; from + step < left && run[from + step].begin <= slot; step *= 2) from += step;
      while (step > 1) {
        step /= 2;
        if (from + step < left && run[from + step].begin <= slot) from += step;
      }
      near[i] = from;
      at[i] = row_at<Codec>(layout, dim, run[from], run[from].place + slot - run[from].begin);
    }
  }
  /// Whether the tile's first slot is coded, and of which parameters.
  __device__ const std::byte* kind() const {
    if constexpr (exact_only) return nullptr;
    else return reinterpret_cast<const std::byte*>(__shfl_sync(cuda::full_warp, reinterpret_cast<unsigned long long>(at[0].params), 0));
  }
  __device__ bool fits(const std::byte* kind, int i) const {
    if constexpr (exact_only) return true;
    else return codec.axis == GroupAxis::channel ? at[i].params == kind : (at[i].params == nullptr) == (kind == nullptr);
  }
  __device__ int capacity(const std::byte* kind) const { return kind == nullptr ? rows_that_fit(16, Dim) : layout.most; }
  /// The run of the tile's slot i; all lanes.
  __device__ int run_of_slot(int i) const {
    int n = __shfl_sync(cuda::full_warp, near[0], i % 32);
    if constexpr (lane_slots == 2) {
      const int upper = __shfl_sync(cuda::full_warp, near[1], i % 32);
      n = i < 32 ? n : upper;
    }
    return n;
  }

  /// Starts the copies of `count` slots. Rows up to a multiple of 16 repeat the last one, and zeros follow short rows:
  /// what is not there has no weight, and is a number.
  template <class Chunk>
  __device__ void copy_rows(std::byte* to, int count, const std::byte* kind, Chunk&& chunk) {
    if (kind == nullptr) copy<padded_row(16, Dim)>(to, count, 2 * dim, 16, chunk);
    else if constexpr (!exact_only) copy<padded_row(bits, Coded)>(to, count, layout.row_bytes, layout.row_grain, chunk);
  }
  __device__ void copy_params(std::byte* to, int count, const std::byte* kind) {
    if constexpr (!exact_only) {
      if (kind == nullptr) return;
      const int lane = cuda::lane_of_warp(), bytes = layout.group_bytes, grain = layout.param_grain;
      if (codec.axis == GroupAxis::channel) {
        const int padded = has_offset(codec.form) ? 4 * Coded : 2 * Coded;
        for (int b = lane * grain; b < padded; b += 32 * grain) {
          const int part = b / (2 * Coded), place = b % (2 * Coded), used = 2 * layout.width;
          copy_grain(to + part * 2 * Coded + param_chunk(place / 16) * 16 + place % 16, kind + part * used + place, grain, place < used);
        }
        return;
      }
#pragma unroll
      for (int i = 0; i < lane_slots; ++i) {
        const int s = lane + 32 * i;
        std::byte* slot = to + s * layout.stride;
        if (s < count)
          for (int b = 0; b < bytes; b += grain) copy_grain(slot + b, at[i].params + b, grain);
        else if (s < (count + 15) / 16 * 16)
          for (int b = 0; b < layout.stride; b += 4) *reinterpret_cast<std::uint32_t*>(slot + b) = 0;
      }
    }
  }
  __device__ void pass(int count) {
    const int n = run_of_slot(count - 1);
    run += n, left -= n;
  }

 private:
  template <int Row, class Chunk>
  __device__ void copy(std::byte* to, int count, int used, int grain, Chunk&& chunk) {
    constexpr int chunks = Row / 16, step = 32 / chunks, whole = ring_rows / Row < ring_slots ? ring_rows / Row : ring_slots;
    const int lane = cuda::lane_of_warp(), rows = (count + 15) / 16 * 16;
    const bool one_run = run_of_slot(0) == run_of_slot(count - 1);
    const auto first = reinterpret_cast<const std::byte*>(__shfl_sync(cuda::full_warp, reinterpret_cast<unsigned long long>(at[0].row), 0));
    if (one_run && count == whole && used == Row && grain == 16) {  // a stretch of bytes; chunks repeat their pattern every eight rows
      const std::byte* from = first + lane * 16;
#pragma unroll
      for (int i = 0; i < whole / step; ++i)
        cuda::copy_async<16>(to + (chunk(lane / chunks + i * step % 8, lane % chunks) + i * step / 8 * 8 * chunks) * 16, from + 512 * i);
      return;
    }
    const int shift = __ffs(Row / grain) - 1;
    for (int i = 0; i < rows << shift; i += 32) {
      const int mine = i + lane, row = mine >> shift, b = (mine - (row << shift)) * grain, source = row < count ? row : count - 1;
      const std::byte* from = first + source * used;
      if (!one_run) {
        auto p = __shfl_sync(cuda::full_warp, reinterpret_cast<unsigned long long>(at[0].row), source % 32);
        if constexpr (lane_slots == 2) {
          const auto upper = __shfl_sync(cuda::full_warp, reinterpret_cast<unsigned long long>(at[1].row), source % 32);
          p = source < 32 ? p : upper;
        }
        from = reinterpret_cast<const std::byte*>(p);
      }
      if (row < rows) copy_grain(to + chunk(row, b / 16) * 16 + b % 16, from + b, grain, b < used);
    }
  }
};

/// What a tile is.
struct TileHead {
  int first = 0;  ///< slot of the head
  int count = 0;  ///< 0: no more
  int key_coded = 0, value_coded = 0;
};

/// `Units`: of a lane's exact keys that lie side by side.
template <class KeyCodec, class ValueCodec, int Dim, int Units, int Coded = Dim>
struct Ring {
  RingColumn<KeyCodec, Dim, Coded> keys;
  RingColumn<ValueCodec, Dim, Coded> values;
  std::byte* memory;
  int bytes;  ///< of a stage
  int next, end;

  __device__ Ring(const RingColumn<KeyCodec, Dim, Coded>& of_keys, const RingColumn<ValueCodec, Dim, Coded>& of_values, int stage, std::byte* of_warp, int first, int last)
      : keys(of_keys), values(of_values), memory(of_warp), bytes(stage), next(first), end(last) {}

  __device__ std::byte* rows_of_keys(int stage) const { return memory + stage * bytes; }
  __device__ std::byte* rows_of_values(int stage) const { return memory + stage * bytes + ring_rows; }
  __device__ std::byte* params_of_keys(int stage) const { return memory + stage * bytes + 2 * ring_rows; }
  __device__ std::byte* params_of_values(int stage) const { return params_of_keys(stage) + keys.layout.params; }
  __device__ TileHead& head(int stage) const { return *reinterpret_cast<TileHead*>(memory + (stage + 1) * bytes - 16); }

  /// Starts the copies of the next tile, a group of copies of its own. All lanes.
  __device__ void fetch(int stage) {
    TileHead tile;
    if (next < end) {
      keys.find(next, end), values.find(next, end);
      const std::byte *key_kind = keys.kind(), *value_kind = values.kind();
      const int most_keys = keys.capacity(key_kind), most_values = values.capacity(value_kind);
      int most = most_keys < most_values ? most_keys : most_values;
      if (most > end - next) most = end - next;
      constexpr int words = decltype(keys)::lane_slots < decltype(values)::lane_slots ? decltype(keys)::lane_slots : decltype(values)::lane_slots;
      int count = 0;
#pragma unroll
      for (int i = 0; i < words; ++i) {
        const bool mine = cuda::lane_of_warp() + 32 * i < most && keys.fits(key_kind, i) && values.fits(value_kind, i);
        const unsigned not_mine = ~__ballot_sync(cuda::full_warp, mine);
        const int ones = not_mine == 0 ? 32 : __ffs(static_cast<int>(not_mine)) - 1;
        if (count == 32 * i) count += ones;
      }
      tile = {next, count, key_kind != nullptr, value_kind != nullptr};
      keys.copy_rows(rows_of_keys(stage), count, key_kind, [&](int row, int c) {
        constexpr int coded = padded_row(stored_bits<KeyCodec>, Coded), exact = padded_row(16, Dim);
        return key_kind == nullptr ? key_chunk<exact, Units>(row, c) : key_chunk<coded, 1>(row, c);
      });
      values.copy_rows(rows_of_values(stage), count, value_kind, [&](int row, int c) {
        constexpr int coded = padded_row(stored_bits<ValueCodec>, Coded), exact = padded_row(16, Dim);
        return value_kind == nullptr ? value_chunk<exact>(row, c) : value_chunk<coded>(row, c);
      });
      keys.copy_params(params_of_keys(stage), count, key_kind);
      values.copy_params(params_of_values(stage), count, value_kind);
      keys.pass(count), values.pass(count);
      next += count;
    }
    if (cuda::lane_of_warp() == 0) head(stage) = tile;
    cuda::copy_async_commit();
  }
};

}  // namespace kvcondense::prim::cuda_kernels
