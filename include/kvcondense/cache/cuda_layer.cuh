#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/cache/counters.hpp>
#include <kvcondense/cache/cuda_column.cuh>
#include <kvcondense/cache/cuda_open.cuh>
#include <kvcondense/cache/cuda_queries.cuh>
#include <kvcondense/cache/cuda_slot_store.cuh>
#include <kvcondense/cache/cuda_summary.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense::cache {

/// What every layer of a cache on the device has in common.
template <class KeyCodec, class ValueCodec>
struct CudaPlan {
  CacheShape shape{};
  index_t lanes = 0;
  index_t bias = -1, value_scale = -1;  ///< lanes that attention reads; -1: none
  bool summary = false;                 ///< slots that leave live on in a mean
  index_t sinks = 0;
  index_t state = 0;       ///< numbers per head that a merge stage keeps
  index_t found = 0;       ///< of these its finder's, the first ones, which the host reads
  index_t query_rows = 0;  ///< that are kept for later steps
  bool joins = false;       ///< tokens may join the newest slot, which is then the mean of so many of them (0: of all)
  index_t join_window = 0;
  CudaColumnPlan<KeyCodec> keys{};
  CudaColumnPlan<ValueCodec> values{};

  static constexpr prim::LatentSides latent{prim::is_latent<prim::DeviceCodec<KeyCodec>>, prim::is_latent<prim::DeviceCodec<ValueCodec>>};
  /// What the slot of a new token has in a lane.
  float fresh(index_t lane) const { return lane == value_scale ? 1.0f : 0.0f; }
  /// Page-locked memory of a layer for what its columns, and a merge stage, tell the host.
  std::size_t told_bytes() const { return 2 * Scratch::bytes_for<prim::PartCounts>(shape.kv_heads) + Scratch::bytes_for<index_t>(shape.kv_heads); }
};

/// One layer: two columns and how many slots the heads have, on the host and, as kernels read it, on the device.
template <class KeyCodec, class ValueCodec>
class CudaLayer {
 public:
  using Plan = CudaPlan<KeyCodec, ValueCodec>;

  CudaLayer(const Plan& plan, MemoryResource<Cuda>& memory)
      : offset(heap_memory()), pending_positions(heap_memory()), done(heap_memory()), ids(memory), state(memory), found(heap_memory()), window(memory), summary(memory), open(memory), keys(plan.keys, memory), values(plan.values, memory), plan_(plan),
        memory_(&memory), lengths_(memory) {}

  Counters counters;
  Buffer<index_t> offset;  ///< heads + 1: where each head's slots begin in ragged views; the host's
  Buffer<index_t> pending_positions;
  Buffer<HeadCounts> done;  ///< of the heads, from a file; what came since is the cache's
  SlotStore<std::int32_t> ids;  ///< tokens of the slots that a step has seen
  ObjectArray<SlotStore<float>> lanes;
  cuda::DeviceArray<float> state;  ///< a merge stage's, of the heads one behind the other
  Buffer<float> found;             ///< the finder's part of it: these are those that count
  std::span<index_t> folded;       ///< slots of each head that the last step folded, where `folds`: told by the device
  bool folds = false;
  CudaQueryWindow window;
  CudaSummary summary;  ///< of slots that left, where the plan says so
  CudaOpenSlots open;   ///< the newest slots, where tokens may join them
  CudaColumn<KeyCodec> keys;
  CudaColumn<ValueCodec> values;
  std::span<std::byte> steering;
  cuda::Fence fence;  ///< behind the last step, which reads `steering`
  bool torn = false;  ///< a change was enqueued in part and the rest refused: host and device no longer agree on what there is

  /// `told`: plan.told_bytes() of page-locked memory.
  Status make(std::span<std::byte> told) {
    const index_t heads = plan_.shape.kv_heads;
    Status s = offset.resize(heads + 1);
    if (s == Status::ok) s = done.resize(heads);
    if (s == Status::ok) s = lanes.fill(heap_memory(), plan_.lanes, [&](index_t) { return SlotStore<float>(*memory_); });
    if (s == Status::ok) s = window.make(plan_.query_rows, plan_.shape);
    if (s == Status::ok && plan_.summary) s = summary.make(plan_.shape);
    if (s == Status::ok && plan_.joins) s = open.make(plan_.shape, plan_.join_window);
    if (s == Status::ok) s = keys.make();
    if (s == Status::ok) s = values.make();
    if (s == Status::ok) s = lengths_.resize(2 * heads + 1);
    if (s == Status::ok) s = staging_.reserve(lengths_.bytes().size());
    if (s == Status::ok) s = state.resize(heads * plan_.state);
    if (s == Status::ok) s = found.resize(heads * plan_.found);
    std::fill(found.begin(), found.end(), 0.0f);
    if (s == Status::ok && state.size() > 0) s = cuda::settled(cudaMemsetAsync(state.data(), 0, state.bytes().size(), nullptr));
    // An empty cache may be attended to and have a turn before anything was appended.
    if (s == Status::ok) s = cuda::settled(cudaMemsetAsync(lengths_.data(), 0, static_cast<std::size_t>(lengths_.size()) * sizeof(index_t), nullptr));
    if (s == Status::ok) s = cuda::settled(cudaStreamSynchronize(nullptr));
    if (s != Status::ok) return s;
    Scratch scratch(told);
    const auto n = static_cast<std::size_t>(heads);
    folded = {scratch.take<index_t>(heads), n};
    keys.tell_at({scratch.take<prim::PartCounts>(heads), n}), values.tell_at({scratch.take<prim::PartCounts>(heads), n});
    return fence.make();
  }

  index_t slots(index_t head) const { return offset[head + 1] - offset[head]; }
  index_t total() const { return offset[plan_.shape.kv_heads]; }
  index_t longest() const {
    index_t most = 0;
    for (index_t h = 0; h < plan_.shape.kv_heads; ++h) most = std::max(most, slots(h));
    return most;
  }
  /// What was done to the codes of a head; numbers that were repaired are of a file only.
  HeadCounts counts(index_t head) const {
    HeadCounts n = done[head];
    n.coded_again += keys.coded_again(head) + values.coded_again(head);
    return n;
  }
  bool equally_long() const { return longest() * plan_.shape.kv_heads == total(); }
  /// Position of the next token unless the caller says otherwise.
  index_t next_position() const { return counters.pending > 0 ? pending_positions.back() + 1 : counters.stepped_position; }
  index_t sinks_due(index_t tokens) const { return std::clamp<index_t>(plan_.sinks - counters.seen, 0, tokens); }

  /// Pages, tables and numbers for `tokens` more slots of each head. On refusal nothing that counts changes.
  Status reserve(Context<Cuda>& ctx, index_t tokens) {
    const index_t heads = plan_.shape.kv_heads, first = sinks_due(tokens);
    if (const Status s = pending_positions.reserve(counters.pending + tokens); s != Status::ok) return s;
    const auto stepped = [&](index_t h) { return slots(h) - counters.pending; };
    if (const Status s = ids.reserve(ctx, heads, longest() + tokens, stepped); s != Status::ok) return s;
    for (auto& l : lanes)
      if (const Status s = l.reserve(ctx, heads, longest() + tokens, stepped); s != Status::ok) return s;
    if (const Status s = open.reserve(ctx, counters.seen, counters.pending, tokens); s != Status::ok) return s;
    Status s = keys.reserve(ctx, first, tokens - first);
    if (s == Status::ok) s = values.reserve(ctx, first, tokens - first);
    if (s != Status::ok) give_up(ctx);
    return s;
  }
  /// Pages that nothing needs go, as those that a refused call has reserved; kernels are told of those there are.
  void give_up(Context<Cuda>& ctx) {
    const Status trimmed = trim(ctx), settled = settle(ctx);
    torn = torn || trimmed != Status::ok || settled != Status::ok;  // else kernels read what is not there
  }
  /// Kernels are told which pages there are.
  Status settle(Context<Cuda>& ctx) {
    const Status k = keys.settle(ctx), v = values.settle(ctx);
    return k == Status::ok ? v : k;
  }
  /// Behind `reserve`: so many more slots, or (below 0) those taken back, the `first` of them first ones.
  Status add_slots(Context<Cuda>& ctx, index_t tokens, index_t first) {
    keys.count(first, tokens - first), values.count(first, tokens - first);
    return set_slots(ctx, [&](index_t h) { return slots(h) + tokens; });
  }

  /// The heads have this many slots from now on; what kernels read follows in the order of the stream.
  template <class Slots>
  Status set_slots(Context<Cuda>& ctx, Slots&& slots_of) {
    const index_t heads = plan_.shape.kv_heads;
    index_t sum = 0;
    for (index_t h = 0; h < heads; ++h) {
      const index_t n = slots_of(h);
      offset[h] = sum, sum += n;
    }
    offset[heads] = sum;
    if (const Status s = settle(ctx); s != Status::ok) return s;
    std::span<std::byte> numbers;
    if (const Status s = staging_.next(numbers); s != Status::ok) return s;
    const auto put = [&](index_t i, index_t value) { std::memcpy(numbers.data() + static_cast<std::size_t>(i) * sizeof value, &value, sizeof value); };
    for (index_t h = 0; h <= heads; ++h) put(h, offset[h]);
    for (index_t h = 0; h < heads; ++h) put(heads + 1 + h, slots(h));
    return staging_.send(ctx, lengths_.data(), lengths_.bytes().size());
  }
  /// Pages for what becomes codes when the slots stay that `kept` says, and for what moves; `leaves`: these are fewer; `codes`: what is due becomes
  /// codes. On refusal nothing that counts changes.
  Status reserve_codes(Context<Cuda>& ctx, bool leaves, bool codes, const CudaKept& kept) {
    Status s = keys.reserve_codes(ctx, leaves, codes, kept);
    if (s == Status::ok) s = values.reserve_codes(ctx, leaves, codes, kept);
    if (s != Status::ok) give_up(ctx);
    return s;
  }
  /// Whether a step has to be told which slots stay, not only how many.
  bool wants_lists() const { return keys.wants_lists() || values.wants_lists(); }
  /// Whether slots become codes that scores tell apart when the slots stay that `kept` says.
  bool grades(const CudaKept& kept) const { return keys.grades(kept) || values.grades(kept); }
  /// Whether a step has something to do with codes though no slot came or leaves.
  bool unsettled() const { return keys.due() || values.due() || keys.unsettled() || values.unsettled(); }
  /// Makes an empty layer of the same plan the same. Behind `learn`.
  Status fork(Context<Cuda>& ctx, CudaLayer& out) {
    out.counters = counters;
    Status s = out.pending_positions.copy_from(pending_positions);
    std::copy_n(done.data(), done.size(), out.done.data());
    if (s == Status::ok) s = ids.fork(ctx, out.ids);
    for (index_t i = 0; i < lanes.size() && s == Status::ok; ++i) s = lanes[i].fork(ctx, out.lanes[i]);
    if (s == Status::ok) s = out.state.copy_from(ctx, state);
    std::copy(found.begin(), found.end(), out.found.begin());  // made alike
    if (s == Status::ok) s = window.fork(ctx, out.window);
    if (s == Status::ok) s = summary.fork(ctx, out.summary);
    if (s == Status::ok) s = open.fork(ctx, out.open, counters.seen, counters.pending);
    if (s == Status::ok) s = keys.fork(ctx, out.keys);
    if (s == Status::ok) s = values.fork(ctx, out.values);
    return s == Status::ok ? out.set_slots(ctx, [&](index_t h) { return slots(h); }) : s;
  }
  /// Behind `learn`: the newest slots of every head leave until `left(head)` are there; of `tokens` tokens.
  template <class Left>
  Status cut(Context<Cuda>& ctx, Left&& left, index_t tokens) {
    Status s = keys.cut(ctx, left);
    if (s == Status::ok) s = values.cut(ctx, left);
    if (s == Status::ok) s = set_slots(ctx, left);
    return s == Status::ok && summary.kept() ? prim::SlotSummary::limit(ctx, device_slots(), tokens, summary.numbers()) : s;
  }
  Status trim(const Context<Cuda>& ctx) {
    const Status s = keys.trim(ctx), t = values.trim(ctx), u = open.trim(ctx, counters.seen, counters.pending);
    return s != Status::ok ? s : t != Status::ok ? t : u;
  }
  /// Behind the last step: how many slots it folded that are not counted yet.
  index_t folded_since() const { return folds ? std::accumulate(folded.begin(), folded.end(), index_t{0}) : 0; }
  /// Whether only the device knows that.
  bool counted() const { return keys.counted() || values.counted(); }
  /// Behind the last step: how many slots the parts of columns hold, and what it folded.
  void learn() {
    counters.merged_slots += folded_since(), folds = false;
    const auto of = [&](index_t h) { return slots(h); };
    keys.learn(of), values.learn(of);
  }

  // What kernels read.
  const index_t* device_offset() const { return lengths_.data(); }
  const index_t* device_slots() const { return lengths_.data() + plan_.shape.kv_heads + 1; }
  prim::PagedHeads<prim::DeviceCodec<KeyCodec>, prim::DeviceCodec<ValueCodec>> heads(const prim::KeyTurn& turn) const {
    const auto lane = [&](index_t i) { return i < 0 ? prim::HeadNumbers<const float>{} : lanes[i].view(); };
    return {keys.codec(), values.codec(), plan_.keys.exact, keys.runs(), values.runs(), device_slots(), plan_.shape.kv_heads,
            {lane(plan_.bias), lane(plan_.value_scale), counters.pending}, summary.view(), turn, open.passed(counters.pending)};
  }

  prim::SlotTokens tokens() const { return {ids.view(), counters.seen, counters.pending}; }

  std::size_t side_bytes() const {
    std::size_t n = static_cast<std::size_t>(state.size()) * sizeof(float) + summary.bytes() + open.bytes() + ids.bytes() + keys.side_bytes() + values.side_bytes() + static_cast<std::size_t>(lengths_.size()) * sizeof(index_t);
    for (const auto& l : lanes) n += l.bytes();
    return n;
  }

  /// Empty again; only while no kernel uses it.
  Status clear(Context<Cuda>& ctx) {
    const Status s = keys.clear(ctx), t = values.clear(ctx), u = state.fill_bytes(ctx, 0), v = summary.clear(ctx), w = open.release(ctx);
    pending_positions.shrink(0);
    counters = {}, torn = folds = false;
    std::fill(done.begin(), done.end(), HeadCounts{});
    std::fill(found.begin(), found.end(), 0.0f);
    window.truncate(0);
    ids.clear();
    for (auto& l : lanes) l.clear();
    const Status told = set_slots(ctx, [](index_t) { return index_t{0}; });  // kernels read lengths on the device
    return s != Status::ok ? s : t != Status::ok ? t : u != Status::ok ? u : v != Status::ok ? v : w != Status::ok ? w : told;
  }

 private:
  Plan plan_;
  MemoryResource<Cuda>* memory_;
  cuda::Staging staging_;
  cuda::DeviceArray<index_t> lengths_;  ///< offsets, then slots of every head
};

}  // namespace kvcondense::cache
