#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/slot_runs.hpp>

// Attention over chosen slots is attention over heads that have no others: a row of selection is a head whose runs are those of its slots.

namespace kvcondense::prim {

/// What rows of selection read: units of a KV head, all slots in front of the first that competes, and all behind the last.
struct ChosenUnits {
  RaggedView<const std::int32_t> units;  ///< per row, ascending, counted from `base`
  const index_t* count = nullptr;        ///< of them
  const index_t *first = nullptr, *last = nullptr;   ///< per KV head: units [first, last) compete
  const index_t* base = nullptr;         ///< per KV head: the unit that lists count from
  const index_t *slots = nullptr, *known = nullptr;  ///< per KV head: all, and those that an index knows
  index_t heads = 0;                     ///< KV heads
  index_t size = 1, origin = 0;          ///< unit u is slots [origin + u * size, origin + (u + 1) * size)
  index_t unread = 0;                    ///< last slots of a unit that are not read
  const std::int32_t* rank = nullptr;    ///< as the lists: the order of scores, in which units take slots; null: all find room
  const index_t* room = nullptr;         ///< with ranks, per KV head: so many slots

  /// Slots that are read of the i-th unit of a row.
  __device__ index_t read_of(index_t row, index_t i) const {
    const index_t whole = size - unread;
    if (rank == nullptr) return whole;
    const index_t left = room[row * heads / units.heads] - static_cast<index_t>(rank[units.offset[row] + i]) * size;
    return left < 0 ? 0 : left < whole ? left : whole;
  }
};

/// Slots [first, last) of a head, which are slots `at`, `at + 1` ... of a row.
struct ChosenInterval {
  std::int32_t first, last, at;
};

/// Where the slots of every row lie. Row r has room for runs [run_offset[r], run_offset[r + 1]) and for intervals
/// [interval_offset[r], interval_offset[r + 1]), of which units.count[r] + 2 are used; some may be empty.
struct ChosenRuns {
  SlotRun *keys = nullptr, *values = nullptr;
  ChosenInterval* intervals = nullptr;
  const index_t *run_offset = nullptr, *interval_offset = nullptr;
  index_t* slots = nullptr;  ///< per row: how many
};

namespace cuda_kernels {

inline constexpr int chosen_threads = 128;

struct ChosenShared {
  cuda::BlockScratch<std::int32_t, chosen_threads> sums;
};

/// The run of a slot, counted from the head's first one.
__device__ inline std::int32_t run_index(const ColumnRuns& column, index_t head, std::int32_t slot) {
  return static_cast<std::int32_t>(&run_of(column, head, slot) - (column.runs + column.offset[head]));
}

/// Runs of the slots of an interval.
struct Pieces {
  std::int32_t first = 0, count = 0;

  __device__ Pieces(const ColumnRuns& column, index_t head, const ChosenInterval& slots) {
    if (slots.first >= slots.last) return;
    first = run_index(column, head, slots.first);
    count = run_index(column, head, slots.last - 1) - first + 1;
  }
  /// Into out[0, count), renumbered so that the interval begins at its place in the row.
  __device__ void write(const ColumnRuns& column, index_t head, const ChosenInterval& slots, SlotRun* out) const {
    const SlotRun* from = column.runs + column.offset[head] + first;
    for (std::int32_t i = 0; i < count; ++i) {
      SlotRun run = from[i];
      const std::int32_t begin = run.begin > slots.first ? run.begin : slots.first;
      run.place += begin - run.begin, run.begin = slots.at + begin - slots.first;
      out[i] = run;
    }
  }
};

/// A block a row, threads its intervals: their slots, then where these lie in both columns. What is left of the room is behind all slots.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) lay_chosen(ChosenUnits chosen, ColumnRuns keys, ColumnRuns values, ChosenRuns out) {
  static_assert(Threads == chosen_threads);
  ChosenShared& shared = cuda::shared_as<ChosenShared>();
  const index_t row = blockIdx.x, head = row * chosen.heads / chosen.units.heads, n = chosen.count[row];
  const auto begin_of = [&](index_t u) { return chosen.origin + u * chosen.size; };
  const index_t slots = chosen.slots[head], first = chosen.first[head], base_unit = chosen.base[head], last = chosen.last[head];
  const auto within = [&](index_t slot) { return slot < slots ? slot : slots; };
  const std::int32_t* const units = chosen.units.row(row);
  ChosenInterval* const intervals = out.intervals + out.interval_offset[row];
  SlotRun* const key_runs = out.keys + out.run_offset[row];
  SlotRun* const value_runs = out.values + out.run_offset[row];
  std::int32_t at = 0, key_at = 0, value_at = 0;
  for (index_t base = 0; base < n + 2; base += Threads) {
    const index_t i = base + threadIdx.x;
    ChosenInterval mine{0, 0, 0};
    if (i == 0) {
      mine.last = static_cast<std::int32_t>(within(begin_of(first)));
    } else if (i <= n) {
      const index_t begin = begin_of(base_unit + units[i - 1]);
      mine.first = static_cast<std::int32_t>(within(begin)), mine.last = static_cast<std::int32_t>(within(begin + chosen.read_of(row, i - 1)));
    } else if (i == n + 1) {
      // Slots that no index knows may lie in the last unit, which may have been chosen.
      index_t begin = begin_of(last) < chosen.known[head] ? begin_of(last) : chosen.known[head];
      const index_t before = n > 0 ? begin_of(base_unit + units[n - 1]) + chosen.read_of(row, n - 1) : begin_of(first);
      begin = within(begin > before ? begin : before);
      mine.first = static_cast<std::int32_t>(begin), mine.last = static_cast<std::int32_t>(slots);
    }
    const Pieces key(keys, head, mine), value(values, head, mine);
    const auto place = [&](std::int32_t size, std::int32_t& all) {
      const cuda::Running<std::int32_t> sum = cuda::block_running<std::int32_t, Threads>(size, shared.sums);
      const std::int32_t before = all + sum.before;
      all += sum.all;
      return before;
    };
    mine.at = place(mine.last - mine.first, at);
    const std::int32_t key_place = place(key.count, key_at), value_place = place(value.count, value_at);
    if (i < n + 2) intervals[i] = mine;
    key.write(keys, head, mine, key_runs + key_place);
    value.write(values, head, mine, value_runs + value_place);
  }
  const index_t room = out.run_offset[row + 1] - out.run_offset[row];
  for (index_t i = key_at + static_cast<index_t>(threadIdx.x); i < room; i += Threads) key_runs[i] = {nullptr, 0x7fffffff, 0, false};
  for (index_t i = value_at + static_cast<index_t>(threadIdx.x); i < room; i += Threads) value_runs[i] = {nullptr, 0x7fffffff, 0, false};
  if (threadIdx.x == 0) out.slots[row] = at;
}

/// The last interval of a row that begins no later than x: with slot x by `first`, with the row's x-th slot by `at`.
template <std::int32_t ChosenInterval::*Begin, class X>
__device__ inline const ChosenInterval* interval_of(const ChosenUnits& chosen, const ChosenRuns& runs, index_t row, X x) {
  const ChosenInterval* low = runs.intervals + runs.interval_offset[row];
  const ChosenInterval* high = low + chosen.count[row] + 2;
  while (high - low > 1) {
    const ChosenInterval* middle = low + (high - low) / 2;
    if (middle->*Begin <= x) low = middle;
    else high = middle;
  }
  return low;
}

/// What every slot of a KV head drew from the rows that read it; a slot that nobody read drew nothing. Grid: blocks of slots, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) spread_mass(ChosenUnits chosen, ChosenRuns runs, RaggedView<const float> from, RaggedView<float> to) {
  const index_t head = blockIdx.y, slot = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x, rows = chosen.units.heads / chosen.heads;
  if (slot >= to.length(head)) return;
  float mass = 0.0f;
  for (index_t row = head * rows; row < (head + 1) * rows; ++row) {
    const ChosenInterval* const low = interval_of<&ChosenInterval::first>(chosen, runs, row, slot);
    if (slot < low->last) mass += from.row(row)[low->at + slot - low->first];
  }
  to.row(head)[slot] = mass;
}

}  // namespace cuda_kernels

/// Lists of chosen slots, which lie on the device, for attention and for what it measures.
struct ChosenSlots {
  /// Runs that a row of `intervals` intervals of a head with so many runs and slots has at most.
  static constexpr index_t most_runs(index_t intervals, index_t head_runs, index_t slots) {
    return intervals + head_runs < slots ? intervals + head_runs : slots;
  }
  static Status lay(Context<Cuda>& ctx, const ChosenUnits& chosen, const ColumnRuns& keys, const ColumnRuns& values, const ChosenRuns& out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, lay_chosen<chosen_threads>, {chosen.units.heads}, chosen_threads, sizeof(ChosenShared), chosen, keys, values, out);
  }
  /// `most`: no head has more slots.
  static Status spread(Context<Cuda>& ctx, const ChosenUnits& chosen, const ChosenRuns& runs, RaggedView<const float> from, index_t most, RaggedView<float> to) {
    return cuda::launch(ctx, cuda_kernels::spread_mass<256>, {cuda::covering(most, 256), to.heads}, 256, 0, chosen, runs, from, to);
  }
};

}  // namespace kvcondense::prim
