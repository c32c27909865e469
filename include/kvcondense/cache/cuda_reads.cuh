#pragma once

#include <algorithm>
#include <span>

#include <kvcondense/backend/cuda/attend.cuh>
#include <kvcondense/backend/cuda/chosen_slots.cuh>
#include <kvcondense/cache/slot_union.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/slot_runs.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/workspace.hpp>

// What calls of attention on the device take, and what they tell the host of the slots that they read.

namespace kvcondense::cache {

/// Device scratch of attention of so many tokens over so many rows of heads, each of at most `slots` slots.
inline std::size_t attend_bytes(const CacheShape& shape, index_t rows, index_t slots, index_t tokens, const AttentionNeed& need,
                                const prim::LatentSides& sides = {}) {
  float nothing = 0.0f;
  prim::AttendRequest r{{nullptr, {shape.q_heads, tokens, shape.head_dim}, {}}, {nullptr, {shape.q_heads, tokens, shape.values()}, {}}};
  r.mass.data = &nothing, r.mass_rows = need.of(tokens);
  return prim::Attend<Cuda>::workspace_bytes(r, rows, slots, sides);
}

/// Runs of either column of a head of so many slots, at most.
template <class Plan>
index_t most_runs(const Plan& plan, index_t slots) {
  const auto runs = [&](const auto& column) {
    if (column.grouped()) return slots;
    index_t n = 0;
    for (int part = 0; part < column.parts; ++part) n += column.pages_for(part, part == 0 ? std::min(slots, column.sinks) : slots) + 1;
    return n;
  };
  return std::max(runs(plan.keys), runs(plan.values));
}

/// The counts and runs that a call asked for, of a layer whose last step the stream has passed.
template <class Layer, class Runs>
Status tell_reads(const Layer& l, const CacheShape& shape, index_t rows, Runs&& runs, const AttendOutputs& measure) {
  const auto slots = [&](index_t h) { return l.slots(h); };
  const auto bytes = [&](index_t h, const SlotRun& run) {
    return l.keys.slot_bytes(h, l.slots(h), run.first, run.last) + l.values.slot_bytes(h, l.slots(h), run.first, run.last);
  };
  if (measure.reads != nullptr) count_reads(shape.kv_heads, rows, runs, slots, bytes, *measure.reads);
  for (index_t h = 0; measure.runs.data != nullptr && h < shape.q_heads; ++h) {
    const std::span<const SlotRun> from = runs(h * rows / shape.q_heads);
    if (static_cast<index_t>(from.size()) > measure.runs.room) return Status::out_of_range;
    std::copy(from.begin(), from.end(), measure.runs.data + h * measure.runs.room);
    measure.runs.count[h] = static_cast<index_t>(from.size());
  }
  return Status::ok;
}

/// The same of a call that read every slot. Waits for the stream.
template <class Layer>
Status tell_all_read(const Context<Cuda>& ctx, const Layer& l, const CacheShape& shape, const AttendOutputs& measure) {
  if (const Status s = ctx.wait(); s != Status::ok) return s;
  SlotRun whole{};
  const auto runs = [&](index_t h) {
    whole.last = static_cast<std::int32_t>(l.slots(h));
    return std::span<const SlotRun>(&whole, whole.last > 0 ? 1 : 0);
  };
  return tell_reads(l, shape, shape.kv_heads, runs, measure);
}

/// The same of a call that reads chosen slots.
class ChosenReads {
 public:
  /// Memory of the host for what `rows` rows of selection read, so that `tell` is not refused for lack of it. `interval_offset`: where intervals of
  /// a row begin, which stays as it is until `tell` is done.
  Status make(index_t rows, const index_t* interval_offset) {
    rows_ = rows, offset_ = interval_offset;
    Status s = intervals_.resize(offset_[rows]);
    if (s == Status::ok) s = runs_.resize(offset_[rows]);
    if (s == Status::ok) s = count_.resize(rows);
    return s == Status::ok ? used_.resize(rows) : s;
  }
  /// Waits for the stream.
  template <class Layer>
  Status tell(const Context<Cuda>& ctx, const Layer& l, const CacheShape& shape, const prim::ChosenUnits& units, const prim::ChosenRuns& from,
              const AttendOutputs& measure) {
    Status s = down(ctx, intervals_, from.intervals);
    if (s == Status::ok) s = down(ctx, count_, units.count);
    const Status done = ctx.wait();
    if (s != Status::ok || done != Status::ok) return s != Status::ok ? s : done;
    for (index_t r = 0; r < rows_; ++r) {
      SlotRun* const out = &runs_[offset_[r]];
      index_t n = 0;
      for (index_t i = offset_[r]; i < offset_[r] + count_[r] + 2; ++i) {
        const prim::ChosenInterval& x = intervals_[i];
        if (x.first >= x.last) continue;
        if (n > 0 && out[n - 1].last == x.first) out[n - 1].last = x.last;
        else out[n++] = {x.first, x.last};
      }
      used_[r] = n;
    }
    const auto runs_of = [&](index_t r) { return std::span<const SlotRun>(&runs_[offset_[r]], static_cast<std::size_t>(used_[r])); };
    return tell_reads(l, shape, rows_, runs_of, measure);
  }

 private:
  template <class T>
  static Status down(const Context<Cuda>& ctx, Buffer<T>& to, const T* at) {
    return cuda::settled(cudaMemcpyAsync(to.data(), at, static_cast<std::size_t>(to.size()) * sizeof(T), cudaMemcpyDeviceToHost, ctx.stream()));
  }

  index_t rows_ = 0;
  const index_t* offset_ = nullptr;
  Buffer<prim::ChosenInterval> intervals_{heap_memory()};
  Buffer<SlotRun> runs_{heap_memory()};
  Buffer<index_t> count_{heap_memory()}, used_{heap_memory()};
};

/// How many candidates walks have looked at, which only the device knows: counted where somebody asks.
struct WalkedCounts {
  index_t* device = nullptr;  ///< per query row
  Buffer<index_t> host{heap_memory()};

  Status make(const Context<Cuda>& ctx, index_t rows, Scratch& scratch) {
    device = scratch.take<index_t>(rows);
    if (device == nullptr) return Status::workspace_too_small;
    const Status s = host.resize(rows);
    return s == Status::ok ? cuda::settled(cudaMemsetAsync(device, 0, host.span().size_bytes(), ctx.stream())) : s;
  }
  /// `bytes(n)`: of the index, read by the walks of a head and a query token that look at n candidates. Waits for the stream.
  template <class Bytes>
  Status tell(const Context<Cuda>& ctx, index_t heads, index_t tokens, Bytes&& bytes, ReadCounts& reads) {
    const Status s = cuda::settled(cudaMemcpyAsync(host.data(), device, host.span().size_bytes(), cudaMemcpyDeviceToHost, ctx.stream()));
    const Status done = ctx.wait();
    if (s != Status::ok || done != Status::ok) return s != Status::ok ? s : done;
    for (index_t h = 0; h < heads; ++h) {
      index_t n = 0;
      for (index_t r = h * host.size() / heads; r < (h + 1) * host.size() / heads; ++r) n += host[r];
      reads.units_scored += n;
      reads.index_bytes += bytes(n) + static_cast<std::size_t>(tokens - 1) * bytes(0);
    }
    return Status::ok;
  }
};

}  // namespace kvcondense::cache
