#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>

#include <kvcondense/backend/cuda/drawn_slots.cuh>
#include <kvcondense/cache/cuda_slot_store.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/retrieve/blocks/drawn_mass.hpp>
#include <kvcondense/retrieve/blocks/representative_keys.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::cache {

/// What slots of every layer drew, of a summary that is told of attention in every step (retrieve::Watch). Of others: nothing.
template <class Summary>
class CudaWatching {
 public:
  static constexpr bool there = requires(const Summary& s) { s.watch(); };

  Status make(const Summary& summary, const CacheShape& shape, MemoryResource<Cuda>& memory) {
    if constexpr (there) numbers_ = summary.watch().numbers(shape), anew_ = summary.watch().anew();
    return there ? drawn_.fill(heap_memory(), shape.layers, [&](index_t) { return SlotStore<float>(memory); }) : Status::ok;
  }
  prim::DrawnNumbers numbers(index_t layer) const {
    if (!there) return {};
    const prim::HeadNumbers<const float> v = drawn_[layer].view();
    return {{const_cast<float*>(v.data), v.room}, numbers_};
  }
  /// The planes of an index, with these numbers where they are all that there is to score.
  prim::UnitPlanes told(prim::UnitPlanes planes, index_t layer) const {
    if constexpr (std::is_same_v<Summary, retrieve::DrawnMass>) planes.found = numbers(layer).sums.data, planes.found_room = numbers(layer).sums.room;
    return planes;
  }
  std::size_t bytes(index_t layer) const { return there ? drawn_[layer].bytes() : 0; }
  /// Scratch of a step.
  std::size_t step_bytes(index_t total) const { return there ? 2 * Scratch::bytes_for<float>(total * numbers_) : 0; }

  /// What the queries of a step give to slots, see retrieve::Watch: `sums` has [numbers, slots] for every KV head.
  Status watch(Context<Cuda>& ctx, const Summary& summary, const StepView<Cuda>& view, float* sums) const {
    if constexpr (there) {
      constexpr index_t at_once = 256;  // rows whose windows are nearly the same
      const retrieve::Watch watched = summary.watch();
      if (watched.anew()) {
        prim::ColumnRequest request;
        request.rows = watched.rows(view.seen, view.columns->rows());
        request.group = prim::GroupReduce::sum;
        request.out = {sums, view.word_offset, view.heads()};
        return view.columns->run(ctx, request);
      }
      std::int32_t chosen[at_once];
      std::iota(chosen, chosen + at_once, 0);
      const auto bytes = static_cast<std::size_t>(view.total() * numbers_) * sizeof(float);
      if (const Status s = cuda::settled(cudaMemsetAsync(sums, 0, bytes, ctx.stream())); s != Status::ok) return s;
      for (index_t rows = view.appended; rows > 0; rows -= at_once) {
        prim::ColumnRequest request;
        request.rows = rows, request.chosen = {chosen, static_cast<std::size_t>(std::min(rows, at_once))};
        request.group = prim::GroupReduce::none, request.add = true, request.band = watched.window;
        request.part = {watched.sinks, 1 - rows - watched.window, view.seen};  // from the first row's window on
        request.out = {sums, view.word_offset, view.heads()};
        if (const Status s = view.columns->run(ctx, request); s != Status::ok) return s;
      }
    }
    return Status::ok;
  }
  /// Room for `slots` of each head, of which `stepped(head)` have numbers.
  template <class Stepped>
  Status reserve(const Context<Cuda>& ctx, index_t layer, index_t heads, index_t slots, Stepped&& stepped) {
    if constexpr (there) return drawn_[layer].reserve(ctx, heads, slots * numbers_, [&](index_t h) { return stepped(h) * numbers_; });
    return Status::ok;
  }
  /// Behind `watch`, or with null sums, before lengths change: slots that stay keep what they drew. After `reserve`.
  template <class Layer>
  Status keep(Context<Cuda>& ctx, index_t layer, const Layer& l, const float* sums, const evict::KeepSet& kept, bool leaves, Scratch scratch) const {
    if (!there || l.total() == 0) return Status::ok;
    const RaggedView<float> room{scratch.take<float>(l.total() * numbers_), l.device_offset(), kept.slots.heads};
    if (room.data == nullptr) return Status::workspace_too_small;
    const index_t fresh = anew_ && sums != nullptr ? l.longest() : l.counters.pending;  // slots whose old numbers do not count
    return prim::DrawnSlots::step(ctx, numbers(layer), fresh, sums, room, leaves ? kept.slots.data : nullptr, kept.count);
  }
  Status fork(const Context<Cuda>& ctx, index_t layer, CudaWatching& out) const { return there ? drawn_[layer].fork(ctx, out.drawn_[layer]) : Status::ok; }
  void clear() {
    for (auto& d : drawn_) d.clear();
  }

  /// As files of the host have them: the numbers of every slot that a step has seen. Waits for the stream.
  template <class Layer>
  void save(ByteWriter& w, const Context<Cuda>& ctx, index_t layer, const Layer& l, index_t heads) const {
    Buffer<float> numbers(heap_memory());
    for (index_t h = 0; there && h < heads; ++h) {
      const index_t n = (l.slots(h) - l.counters.pending) * numbers_;
      Status s = numbers.resize(n);
      if (s == Status::ok && n > 0) s = cuda::settled(cudaMemcpyAsync(numbers.data(), this->numbers(layer).sums.row(h), numbers.span().size_bytes(), cudaMemcpyDeviceToHost, ctx.stream()));
      const Status done = ctx.wait();
      if (s != Status::ok || done != Status::ok) return w.fail(s != Status::ok ? s : done);
      w.bytes(std::as_bytes(numbers.span()));
    }
  }
  /// Into an empty one, of so many slots per head that a step has seen; the file is read until the stream is waited for.
  template <class Stepped>
  Status load(ByteReader& r, const Context<Cuda>& ctx, index_t layer, index_t heads, Stepped&& stepped) {
    if constexpr (there) {
      index_t most = 0;
      for (index_t h = 0; h < heads; ++h) most = std::max(most, stepped(h));
      std::span<const std::byte> bytes;
      for (index_t h = 0; h < heads; ++h) {
        if (!r.take(static_cast<std::uint64_t>(stepped(h) * numbers_), sizeof(float), bytes)) return Status::corrupt_data;
        Buffer<float> numbers(heap_memory());
        if (const Status s = numbers.resize(stepped(h) * numbers_); s != Status::ok) return s;
        if (!bytes.empty()) std::memcpy(numbers.data(), bytes.data(), bytes.size());
        for (const float x : numbers)
          if (!(x >= 0.0f) || std::isinf(x)) return Status::corrupt_data;
        if (const Status s = reserve(ctx, layer, heads, most, [](index_t) { return index_t{0}; }); s != Status::ok) return s;
        if (bytes.empty()) continue;
        const cudaError_t e = cudaMemcpyAsync(this->numbers(layer).sums.row(h), bytes.data(), bytes.size(), cudaMemcpyHostToDevice, ctx.stream());
        if (const Status s = cuda::settled(e); s != Status::ok) return s;
      }
    }
    return Status::ok;
  }

 private:
  ObjectArray<SlotStore<float>> drawn_;
  index_t numbers_ = 1;  ///< of a slot
  bool anew_ = false;    ///< a step replaces them
};

}  // namespace kvcondense::cache
