#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/cache/counters.hpp>
#include <kvcondense/cache/head.hpp>
#include <kvcondense/cache/query_window.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/rope.hpp>
#include <kvcondense/retrieve/blocks/unit_state.hpp>

namespace kvcondense::cache {

/// One layer: its KV heads, each with slots of its own number, and the layer's counters.
template <class KeyCodec, class ValueCodec>
struct Layer {
  using Head = cache::Head<KeyCodec, ValueCodec>;
  using Plan = typename Head::Plan;
  using Codecs = typename Head::Codecs;

  ObjectArray<Head> heads;
  Counters counters;
  index_t counted = 0;  ///< query rows of pending tokens whose attention is in the policy's sums already
  Buffer<index_t> offset;             ///< heads + 1; where each head's slots begin in ragged views
  Buffer<index_t> pending_positions;  ///< positions of the pending tokens
  QueryWindow window;                 ///< queries of earlier steps; of no rows unless a policy asks
  ObjectArray<retrieve::UnitState> index;  ///< per head, where a retrieval stage has one
  retrieve::HeldUnits held;

  /// `codecs(head)` says how a head stores what it codes.
  template <class F>
  static Status make(const Plan& plan, F&& codecs, const CacheShape& shape, MemoryResource<Cpu>& memory, Layer& out) {
    for (index_t h = 0; h < shape.kv_heads; ++h)
      if (!codecs(h).valid(plan)) return Status::invalid_argument;
    out.offset = Buffer<index_t>(memory);
    out.pending_positions = Buffer<index_t>(memory);
    if (const Status s = out.offset.resize(shape.kv_heads + 1); s != Status::ok) return s;
    if (const Status s = QueryWindow::make(plan.query_rows, shape, memory, out.window); s != Status::ok) return s;
    if (const Status s = out.heads.fill(memory, shape.kv_heads, [&](index_t h) { return Head(plan, codecs(h), memory); });
        s != Status::ok)
      return s;
    out.held = retrieve::HeldUnits(memory);
    if (plan.indexed)
      if (const Status s = out.index.fill(memory, shape.kv_heads, [&](index_t) { return retrieve::UnitState(memory); }); s != Status::ok)
        return s;
    for (auto& i : out.index) i.width = plan.drawn;
    if (plan.held_rows > 0) {
      if (const Status s = out.held.offset.resize(plan.held_rows + 1); s != Status::ok) return s;
      if (const Status s = out.held.slots.resize(2 * shape.kv_heads); s != Status::ok) return s;
    }
    for (Head& h : out.heads)
      if (const Status s = h.state.resize(plan.state); s != Status::ok) return s;
    for (Head& h : out.heads)
      if (plan.summary)
        if (const Status s = Summary::make(shape.head_dim, shape.values(), memory, h.summary); s != Status::ok) return s;
    return Status::ok;
  }

  /// Copies of the policy's numbers, for policies to work on; false when the scratch is too small.
  bool copy_lanes(index_t lanes, Scratch& scratch, RaggedView<float>* out) const {
    for (index_t i = 0; i < lanes; ++i) {
      out[i] = {scratch.take<float>(total()), offset.data(), heads.size()};
      if (out[i].data == nullptr) return false;
      for (index_t h = 0; h < heads.size(); ++h) std::copy_n(heads[h].lane[i].data(), heads[h].slots(), out[i].row(h));
    }
    return true;
  }
  /// The policy's numbers where they lie; false when the scratch is too small.
  bool lend_lanes(index_t lanes, Scratch& scratch, RaggedView<float>* out) {
    for (index_t i = 0; i < lanes; ++i) {
      float** rows = scratch.take<float*>(heads.size());
      if (rows == nullptr) return false;
      for (index_t h = 0; h < heads.size(); ++h) rows[h] = heads[h].lane[i].data();
      out[i] = {nullptr, offset.data(), heads.size(), rows};
    }
    return true;
  }
  /// Takes the numbers back, those of slots that are kept to the front.
  void take_lanes(std::span<const RaggedView<float>> lanes, index_t head, const Kept& kept) {
    for (std::size_t i = 0; i < lanes.size(); ++i)
      kept.for_runs([to = heads[head].lane[i].data(), from = lanes[i].row(head)](index_t at, index_t first, index_t n) {
        if (from + first != to + at) std::copy_n(from + first, n, to + at);  // lent ones: downwards
      });
  }

  void update_offsets() {
    for (index_t h = 0; h < heads.size(); ++h) offset[h + 1] = offset[h] + heads[h].slots();
  }
  index_t total() const { return offset[heads.size()]; }

  /// Position of the next token unless the caller says otherwise. Not counted: what is pending may be taken back.
  index_t next_position() const { return counters.pending > 0 ? pending_positions.back() + 1 : counters.stepped_position; }

  index_t sinks_due(const Plan& plan, index_t tokens) const {
    return std::clamp<index_t>(plan.sinks - counters.seen, 0, tokens);
  }

  Status reserve(const Plan& plan, index_t tokens) {
    const index_t sinks = sinks_due(plan, tokens);
    Status s = pending_positions.reserve(counters.pending + tokens);
    for (index_t h = 0; s == Status::ok && h < heads.size(); ++h)
      s = heads[h].reserve(counters.seen, sinks, tokens - sinks);
    if (s != Status::ok) trim();
    return s;
  }
  /// Asks the processor for what a step reads of every head, all at once: other layers have been read since it last was.
  void fetch() const {
    for (const Head& h : heads)
      for (std::size_t b = 0; b < sizeof(Head); b += 64) __builtin_prefetch(reinterpret_cast<const std::byte*>(&h) + b);
  }
  /// Gives back room that was reserved and not filled.
  void trim() {
    for (Head& h : heads) h.trim();
  }

  /// After every head took the rows.
  void count(index_t tokens, std::span<const index_t> positions) {
    for (Head& h : heads) h.count(counters.seen, tokens);
    const index_t next = next_position();
    for (index_t i = 0; i < tokens; ++i)
      pending_positions.append_reserved(positions.empty() ? next + i : positions[static_cast<std::size_t>(i)]);
    counters.seen += tokens;
    counters.pending += tokens;
    update_offsets();
  }

  /// At the end of a step: what was pending no longer is.
  void settle() {
    counters.stepped_position = next_position();
    counters.stepped += counters.pending;
    counters.pending = counted = 0;
    pending_positions.shrink(0);
    pending_positions.give_back(1);
  }

  void truncate(index_t tokens) {
    for (Head& h : heads) {
      h.pop_back(h.slots() - h.ids.below(tokens));
      h.summary.limit(tokens - h.slots());
      h.open.drop(counters.seen - tokens);
    }
    for (index_t h = 0; h < index.size(); ++h) index[h].keep_first(heads[h].slots());
    const index_t gone = counters.seen - tokens;
    const index_t unstepped = std::min(gone, counters.pending);
    // Positions of tokens that a step has seen are kept nowhere: they are taken to have counted by one.
    counters.stepped_position = std::max<index_t>(0, counters.stepped_position - (gone - unstepped));
    counters.pending -= unstepped;
    pending_positions.shrink(counters.pending);
    counters.seen = tokens;
    counters.prompt = std::min(counters.prompt, tokens);
    window.truncate(tokens);
    if (tokens < held.made) held.drop();
    update_offsets();
  }

  Status fork(Layer& out) const {
    out.counters = counters, out.counted = counted;
    Status s = out.pending_positions.copy_from(pending_positions);
    for (index_t h = 0; s == Status::ok && h < heads.size(); ++h) s = heads[h].fork(out.heads[h]);
    if (s == Status::ok) s = window.fork(out.window);
    for (index_t h = 0; s == Status::ok && h < index.size(); ++h) s = index[h].fork(out.index[h]);
    if (s == Status::ok) s = held.fork(out.held);
    out.update_offsets();
    return s;
  }

  void clear() {
    for (Head& h : heads) h.clear();
    counters = {}, counted = 0;
    pending_positions.shrink(0);
    window.truncate(0);
    for (auto& i : index) i.clear();
    held.drop();
    update_offsets();
  }
};

/// What a step wrote into lent lanes for the tokens that it brought: zeros again, as before it, unless it is accepted.
template <class L>
class NewestNumbers {
 public:
  NewestNumbers(L* layer, index_t lanes, index_t tokens) : layer_(layer), lanes_(lanes), tokens_(tokens) {}
  NewestNumbers(const NewestNumbers&) = delete;
  NewestNumbers& operator=(const NewestNumbers&) = delete;
  ~NewestNumbers() {
    if (layer_ == nullptr) return;
    for (auto& head : layer_->heads)
      for (index_t i = 0; i < lanes_; ++i) std::fill(head.lane[i].end() - std::min(tokens_, head.slots()), head.lane[i].end(), 0.0f);
  }
  void accept() { layer_ = nullptr; }

 private:
  L* layer_;
  index_t lanes_, tokens_;
};

/// Keys or values of a layer for policies.
template <class L, bool Keys>
class LayerRows final : public SlotRows<Cpu> {
 public:
  explicit LayerRows(const L& layer) : layer_(&layer) {}
  index_t dim() const noexcept override { return column(0).dim(); }
  void read(index_t head, index_t first, prim::RowBlock<float> out) const noexcept override {
    column(head).decode_from(first, out);
  }

 private:
  const auto& column(index_t head) const {
    if constexpr (Keys) return layer_->heads[head].keys;
    else return layer_->heads[head].values;
  }
  const L* layer_;
};

/// Keys of a layer as attention compares them, whatever form they are stored in.
template <class L>
class ReadKeys final : public SlotRows<Cpu> {
 public:
  /// rotation: null where they are stored so.
  ReadKeys(const L& layer, const prim::RopeTable* rotation) : layer_(&layer), rotation_(rotation) {}
  index_t dim() const noexcept override { return layer_->heads[0].keys.dim(); }
  void read(index_t head, index_t first, prim::RowBlock<float> out) const noexcept override {
    layer_->heads[head].keys.decode_from(first, out);
    for (index_t i = 0; rotation_ != nullptr && i < out.rows; ++i) rotation_->rotate(out.data + i * out.step, first + i);
  }

 private:
  const L* layer_;
  const prim::RopeTable* rotation_;
};

}  // namespace kvcondense::cache
