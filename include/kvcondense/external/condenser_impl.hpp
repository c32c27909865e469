#pragma once

#include <algorithm>
#include <bit>
#include <numeric>

#include <kvcondense/backend/cpu/attend.hpp>
#include <kvcondense/backend/cpu/keep_tokens.hpp>
#include <kvcondense/backend/cpu/merge_sets.hpp>
#include <kvcondense/backend/cpu/merge_weights.hpp>
#include <kvcondense/backend/cpu/segmented_combine.hpp>
#include <kvcondense/cache/folding.hpp>
#include <kvcondense/external/condenser.hpp>

namespace kvcondense::external {

namespace detail {

inline constexpr index_t most_lanes = 10;
inline constexpr index_t most_position = 0x7fffffff;

/// Rows of a head of a borrowed layer as `prim::SegmentedCombine` reads and writes them.
struct BorrowedFold {
  const BorrowedLayer* rows;
  index_t head;

  index_t key_dim() const { return rows->keys.dim; }
  index_t value_dim() const { return rows->values.dim; }
  void key(index_t slot, float* row) const { prim::cpu::read_paged(rows->keys, rows->page(slot), head, slot % rows->page_slots, row); }
  void value(index_t slot, float* row) const { prim::cpu::read_paged(rows->values, rows->page(slot), head, slot % rows->page_slots, row); }
  void set_key(index_t slot, float* row) const { set(rows->keys, slot, row); }
  void set_value(index_t slot, float* row) const { set(rows->values, slot, row); }

 private:
  void set(const prim::PagedTensor& t, index_t slot, float* row) const {
    index_t repaired = 0;
    cache::bring_into_range(row, t.dim, t.dtype, repaired);
    prim::cpu::write_paged(t, rows->page(slot), head, slot % rows->page_slots, row);
  }
};

}  // namespace detail

template <class R>
Expected<Condenser<R>> Condenser<R>::make(const CacheShape& shape, const R& recipe, CondenserOptions options, MemoryResource<Cpu>& memory) {
  if (const Status s = validate(shape); s != Status::ok) return s;
  if (const Status s = recipe.evict.validate(shape); s != Status::ok) return s;
  if (const Status s = recipe.merge.validate(shape); s != Status::ok) return s;
  const auto is = [](const auto& stage, const Descriptor& none) { return std::string_view(word_of(stage)) == none.word; };
  if (!is(recipe.quant, KeepExact::about) || !is(recipe.lowrank, NoLowRank::about) || !is(recipe.position, position::Absolute::about) ||
      !is(recipe.retrieve, retrieve::ReadAll::about))
    return Status::not_supported;
  Condenser c;
  c.shape_ = shape, c.recipe_ = recipe, c.options_ = options, c.memory_ = &memory;
  if (shape.softmax_scale == 0.0f) c.shape_.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  c.pipeline_ = recipe.evict.pipeline();
  if (c.pipeline_.residual != evict::Residual::none || evict::model_share(c.pipeline_.allocate).keep > 0.0) return Status::not_supported;
  if (c.pipeline_.reuse.active() && c.pipeline_.allocate.uses_scores()) return Status::incompatible;
  bool shrinks = !std::same_as<Evict, evict::KeepAll>;
  if constexpr (requires { recipe.evict.changes_length(); }) shrinks = recipe.evict.changes_length();
  if constexpr (merge::Merges<Merge>) {
    const merge::Traits t = merger_of(recipe.merge).traits();
    if (t.across.active || t.gate.active) return Status::not_supported;
    if constexpr (can_fold) c.merger_ = merger_of(recipe.merge), c.fold_ = t;
    if (t.active && !shrinks && !t.shrinks) return Status::incompatible;
    if (t.shrinks && (options.sharing != Sharing::per_head || (c.pipeline_.source.one_set() && evict::gives_shares(c.pipeline_.source))))
      return Status::incompatible;
    if (t.shrinks && c.pipeline_.reuse.active()) return Status::incompatible;
    if (t.active && options.sharing == Sharing::per_sequence) return Status::not_supported;
    if (t.place >= 0) {
      const auto angles = prim::rope_angles(t.rope, shape.head_dim);
      if (!angles) return angles.status();
      c.angles_ = *angles;
    }
  }
  if (c.lanes() > detail::most_lanes) return Status::not_supported;
  const AttentionNeed a = c.pipeline_.attention(), b = c.fold_.attention;
  if (a.rows != AttentionNeed::Rows::none && b.rows != AttentionNeed::Rows::none && (a.rows != b.rows || a.count != b.count))
    return Status::incompatible;
  Status failed = Status::ok;
  const auto get = [&](Status s) { failed = failed == Status::ok ? s : failed; };
  const AttentionNeed looks = c.queries();
  const index_t window = looks.rows == AttentionNeed::Rows::last ? looks.count : 0;
  const Status made = c.layers_.fill(memory, shape.layers, [&](index_t) {
    Layer l;
    for (Slots* s : {&l.now, &l.next}) {
      s->offset = Buffer<index_t>(memory), s->ids = Buffer<std::int32_t>(memory);
      s->lanes = Buffer<float>(memory), s->state = Buffer<float>(memory);
      if (failed == Status::ok) get(s->offset.resize(shape.kv_heads + 1, 0));
      if (failed == Status::ok) get(s->state.resize(shape.kv_heads * c.fold_.state, 0.0f));
    }
    for (auto* b32 : {&l.kept, &l.to, &l.turn}) *b32 = Buffer<std::int32_t>(memory);
    for (auto* f : {&l.numbers, &l.query}) *f = Buffer<float>(memory);
    l.count = Buffer<index_t>(memory), l.targets = Buffer<prim::SlotRange>(memory);
    if (failed == Status::ok) get(l.count.resize(shape.kv_heads, 0));
    if (failed == Status::ok) get(l.targets.resize(shape.kv_heads));
    if (failed == Status::ok) get(cache::QueryWindow::make(window, shape, memory, l.window));
    return l;
  });
  if (made != Status::ok) return made;
  if (failed != Status::ok) return failed;
  return c;
}

template <class R>
std::size_t Condenser<R>::workspace_bytes(index_t slots, index_t tokens, index_t pool_pages, index_t workers) const {
  const index_t heads = shape_.kv_heads, total = slots * heads;
  const std::size_t bits = Scratch::bytes_for<std::uint64_t>((pool_pages + 63) / 64), numbers = Scratch::bytes_for<float>(total);
  std::size_t policy = std::max(pipeline_.workspace_bytes(shape_, total), Ballot::workspace_bytes(slots, heads * shape_.layers));
  if constexpr (can_fold)
    if (fold_.active) policy = std::max(policy, Scratch::bytes_for<index_t>(heads) + merger_.workspace_bytes(shape_, total));
  const index_t two_forms = 2 * shape_.head_dim + 1;  // of queries, where codes are behind a transform
  const std::size_t step = prim::AttendColumns<Cpu>::workspace_bytes(workers, shape_, std::max({tokens, layers_[0].window.most(), prompt_rows()}), two_forms) +
                           2 * Scratch::bytes_for<index_t>(heads) + numbers + policy;
  const std::size_t attend = Scratch::bytes_for<index_t>(heads + 1) + Scratch::bytes_for<index_t>(heads) + 2 * numbers +
                             prim::Attend<Cpu>::workspace_bytes(workers, heads, shape_.group() * tokens, slots, shape_.head_dim, shape_.values(), false);
  return Scratch::align + std::max({step + Scratch::align, attend, 2 * bits + numbers});
}

template <class R>
StepView<Cpu> Condenser<R>::step_view(const Layer& l, index_t layer, index_t tokens, Phase phase) const {
  if (phase == Phase::automatic) phase = l.seen == 0 ? Phase::prefill_end : Phase::decode;
  StepView<Cpu> view;
  view.shape = shape_, view.layer = layer, view.phase = phase;
  view.appended = tokens, view.seen = l.seen + tokens, view.next_position = l.next_position + tokens;
  view.stepped = l.stepped + tokens;
  if (phase == Phase::decode || phase == Phase::turn) view.generated = view.seen - l.prompt;
  view.offset = l.next.offset.data();
  return view;
}

/// Whether an input is there that this step reads; the mass of attention can be made of queries.
template <class R>
Status Condenser<R>::check_input(const StepView<Cpu>& view, Input what) const {
  const bool probe = view.phase == Phase::probe;
  if (view.phase == Phase::turn || (probe ? what != Input::queries && !pipeline_.asks_with(what, view.layer) : what == Input::hidden_norms)) return Status::ok;
  const StepInputs& in = view.inputs;
  const bool given = in.attention.mass.data != nullptr;
  if (what == Input::attention) {
    if (given && !rows_fit(in.attention.mass, view.offset, view.heads())) return Status::shape_mismatch;
    return given && in.attention.rows <= 0 ? Status::missing_input : Status::ok;
  }
  if (what != Input::queries) return needs(view.layer).has(what) ? kvcondense::check_input(in, what, shape_, view.appended) : Status::ok;
  index_t least = 0;
  if (probe) least = pipeline_.probes(view.layer) ? view.appended : 0;
  else if (needs(view.layer).has(Input::queries)) least = std::max<index_t>(1, queries(view.layer).of(view.appended));
  if (!probe && !given && (reads_attention(view) || keeps_queries(view))) least = std::max(least, attention().of(view.appended));
  if (in.queries.data != nullptr && (in.queries.extent[0] != shape_.q_heads || in.queries.extent[2] != shape_.head_dim ||
                                     in.queries.extent[1] > view.appended))
    return Status::shape_mismatch;
  return least > 0 && (in.queries.data == nullptr || in.queries.extent[1] < least) ? Status::missing_input : Status::ok;
}

template <class R>
const char* Condenser<R>::missing(index_t layer, index_t tokens, const StepInputs& inputs, Phase phase) {
  if (layer < 0 || layer >= shape_.layers || tokens < 0 || tokens > detail::most_position) return nullptr;
  StepView<Cpu> view = coming(layer, tokens, phase);
  view.inputs = inputs;
  for (const Input what : all_inputs)
    if (check_input(view, what) == Status::missing_input) return to_string(what);
  return nullptr;
}

/// Numbers of slots with those of new tokens, in `next`.
template <class R>
Status Condenser<R>::grow(Layer& l, index_t tokens, std::span<const index_t> positions, bool probe) {
  const index_t heads = shape_.kv_heads, before = l.now.total();
  for (index_t h = 0; h < heads; ++h) l.next.offset[h + 1] = l.next.offset[h] + l.now.slots(h) + tokens;
  const index_t total = l.next.total();
  Status s = l.next.ids.resize(total);
  if (s == Status::ok) s = l.next.lanes.resize(total * lanes());
  // Room that the answer needs.
  if (s == Status::ok && !probe) s = l.kept.resize(total);
  if (fold_.active && s == Status::ok) s = l.to.resize(total);
  if (fold_.active && s == Status::ok) s = l.turn.resize(total);
  if (fold_.active && s == Status::ok) s = l.numbers.resize(3 * total);
  if (fold_.mass == merge::Mass::exact && s == Status::ok) s = l.query.reserve(shape_.q_heads * shape_.head_dim, true);
  if (s != Status::ok) return s;
  std::copy_n(l.now.state.data(), l.now.state.size(), l.next.state.data());
  for (index_t h = 0; h < heads; ++h) {
    const index_t n = l.now.slots(h), to = l.next.offset[h], from = l.now.offset[h];
    if (n > 0) std::copy_n(l.now.ids.data() + from, n, l.next.ids.data() + to);
    for (index_t i = 0; i < tokens; ++i) l.next.ids[to + n + i] = static_cast<std::int32_t>(l.seen + i);
    for (index_t lane = 0; lane < lanes(); ++lane) {
      float* x = l.next.lanes.data() + lane * total + to;
      if (n > 0) std::copy_n(l.now.lanes.data() + lane * before + from, n, x);
      const index_t own = lane - pipeline_.lanes();
      for (index_t i = 0; i < tokens; ++i) {
        const index_t p = positions.empty() ? l.next_position + i : positions[static_cast<std::size_t>(i)];
        x[n + i] = own == fold_.place && own >= 0 ? std::bit_cast<float>(static_cast<std::int32_t>(p))
                   : own == fold_.value_scale && own >= 0 ? 1.0f : 0.0f;
      }
    }
  }
  return Status::ok;
}

template <class R>
template <class Memory>
Status Condenser<R>::step(Context<Cpu>& ctx, index_t layer, const Memory& rows, index_t tokens, const StepInputs& inputs, Phase phase,
                          std::span<const index_t> positions) {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  Layer& l = layers_[layer];
  const bool turn = phase == Phase::turn, probe = phase == Phase::probe;
  if (leaves(layer) || !l.settled || (tokens == 0) != turn) return Status::order_violation;
  if (tokens < 0 || inputs.incoming < 0) return Status::invalid_argument;
  if (!positions.empty() && static_cast<index_t>(positions.size()) != tokens) return Status::shape_mismatch;
  for (const index_t p : positions)
    if (p < 0 || p >= detail::most_position) return Status::invalid_argument;
  if (tokens > detail::most_position - l.seen || (positions.empty() && tokens > detail::most_position - l.next_position)) return Status::out_of_range;
  const index_t next = positions.empty() ? l.next_position + tokens : positions.back() + 1;
  // Codes are no targets, and leave in all heads or in none.
  if (!std::same_as<Memory, BorrowedLayer> && (fold_.active || (options_.sharing == Sharing::per_head && shape_.kv_heads > 1)))
    return Status::not_supported;
  if (probe && !pipeline_.probes(layer)) return Status::ok;
  Scratch scratch(ctx.workspace());
  if (const Status s = check(rows, shape_, longest(layer) + tokens, scratch); s != Status::ok) return s;
  if (const Status s = grow(l, tokens, positions, probe); s != Status::ok) return s;
  StepView<Cpu> view = step_view(l, layer, tokens, phase);
  view.inputs = inputs, view.next_position = next;
  for (const Input what : all_inputs)
    if (const Status s = check_input(view, what); s != Status::ok) return s;
  if (keeps_queries(view) && l.prompt_window.most() == 0)
    if (const Status s = cache::QueryWindow::make(prompt_rows(), shape_, *memory_, l.prompt_window); s != Status::ok)
      return l.prompt_window = {}, s;
  if (const Status s = decide(ctx, l, view, rows, scratch); s != Status::ok || probe) return s;

  // Nothing below can fail.
  std::swap(l.now, l.next);
  remember(l, view);
  l.seen += tokens, l.stepped += tokens, l.next_position = next;
  if (in_prompt(view)) l.prompt = l.seen;
  if (view.phase == Phase::prefill_end) l.ended = l.seen;
  l.waits = true, l.settled = options_.sharing != Sharing::per_sequence;
  l.leaves = l.folds;
  for (index_t h = 0; h < shape_.kv_heads; ++h) l.leaves = l.leaves || l.count[h] < l.now.slots(h);
  return Status::ok;
}

/// The newest queries, for steps to come.
template <class R>
void Condenser<R>::remember(Layer& l, const StepView<Cpu>& view) {
  const TensorView<const float, 3>& q = view.inputs.queries;
  const index_t given = q.data == nullptr ? 0 : q.extent[1];
  const auto push = [&](cache::QueryWindow& w) {
    for (index_t t = std::max<index_t>(0, given - w.most()); w.most() > 0 && t < given; ++t) {
      float* row = w.push_row(0);
      for (index_t h = 0; h < shape_.q_heads; ++h)
        for (index_t d = 0; d < shape_.head_dim; ++d) row[h * shape_.head_dim + d] = q(h, t, d);
    }
    w.set_end(view.seen);
  };
  if (view.phase != Phase::turn) push(l.window);
  if (!in_prompt(view)) return void(l.prompt_window = {});
  // Rows of a window follow each other: none of another prompt, none before tokens whose queries nobody brought.
  if (l.seen == l.ended || given < view.appended) l.prompt_window.truncate(0);
  push(l.prompt_window);
}

template <class R>
template <class Memory>
Status Condenser<R>::decide(Context<Cpu>& ctx, Layer& l, StepView<Cpu> view, const Memory& rows, Scratch scratch) {
  const index_t heads = shape_.kv_heads, total = view.total();
  const bool turn = view.phase == Phase::turn, probe = view.phase == Phase::probe;
  auto* counts = scratch.take<index_t>(heads);
  auto* budget = scratch.take<index_t>(heads);
  if (budget == nullptr || counts == nullptr) return Status::workspace_too_small;
  for (index_t h = 0; h < heads; ++h) counts[h] = view.slots(h);
  const RaggedView<const std::int32_t> tokens{l.next.ids.data(), view.offset, heads};
  const LayerSlots<Memory> slots(rows, counts, tokens, lane_of(l.next, fold_.bias), lane_of(l.next, fold_.value_scale));
  const index_t width = prim::widest_query([&](index_t h) { return slots.head(h); }, heads, shape_.head_dim);
  const index_t most_rows = std::max({view.inputs.queries.extent[1], l.window.most(), prompt_rows()});
  const std::size_t bytes = prim::AttendColumns<Cpu>::workspace_bytes(ctx.workers(), shape_, most_rows, width);
  std::byte* columns_at = scratch.take<std::byte>(static_cast<index_t>(bytes));
  if (columns_at == nullptr) return Status::workspace_too_small;
  const BorrowedColumns<Memory> columns(slots, shape_, view.inputs.queries, l.window, view.seen, {columns_at, bytes});
  view.keys = &slots.keys, view.values = &slots.values;
  if (probe || (queries(view.layer).rows != AttentionNeed::Rows::none && !turn)) view.columns = &columns;

  RaggedView<float> lane[detail::most_lanes];
  for (index_t i = 0; i < lanes(); ++i) lane[i] = {l.next.lane(i), view.offset, heads};
  const std::span<const RaggedView<float>> all(lane, static_cast<std::size_t>(lanes()));
  const auto own = all.first(static_cast<std::size_t>(pipeline_.lanes())), folding = all.subspan(own.size());
  if (probe) {  // what slots that are there already have learned; the tokens are gone again
    const Status s = evict::observe_probe(pipeline_.source, ctx, view, own, scratch);
    for (index_t i = 0; i < lanes() && s == Status::ok; ++i)
      for (index_t h = 0; h < heads; ++h) std::copy_n(lane[i].row(h), l.now.slots(h), l.now.lane(i) + l.now.offset[h]);
    return s;
  }
  if (reads_attention(view) && view.inputs.attention.mass.data == nullptr) {
    float* mass = scratch.take<float>(total);
    if (mass == nullptr) return Status::workspace_too_small;
    const cache::QueryWindow none;
    const bool goes_on = in_prompt(view) && l.seen != l.ended;
    const BorrowedColumns<Memory> newest(slots, shape_, view.inputs.queries, goes_on ? l.prompt_window : none, view.seen, {columns_at, bytes});
    prim::ColumnRequest request;
    request.rows = attention().of(newest.rows()), request.group = prim::GroupReduce::sum;
    request.out = {mass, view.offset, heads};
    if (const Status s = newest.run(ctx, request); s != Status::ok) return s;
    view.inputs.attention = {request.out, request.rows};
  }
  if (const Status s = pipeline_.observe(ctx, view, own); s != Status::ok) return s;
  if constexpr (can_fold)
    if (fold_.active)
      if (const Status s = merger_.observe(ctx, view, folding); s != Status::ok) return s;
  const evict::KeepSet keep{{l.kept.data(), view.offset, heads}, l.count.data(), budget};
  if (pipeline_.fires(view)) {
    Scratch lists = scratch;
    if (const Status s = name_followed(view, lists); s != Status::ok) return s;
    if (const Status s = pipeline_.choose(ctx, view, own, keep, lists); s != Status::ok) return s;
    if (options_.sharing == Sharing::per_layer)
      if (const Status s = agree(l.count.data(), l.kept.data(), view.offset, scratch); s != Status::ok) return s;
  } else {
    for (index_t h = 0; h < heads; ++h) {
      l.count[h] = view.slots(h);
      std::iota(keep.slots.row(h), keep.slots.row(h) + view.slots(h), 0);
    }
  }
  l.folds = false;
  if constexpr (can_fold && std::same_as<Memory, BorrowedLayer>)
    if (fold_.active) return plan_folds(ctx, l, view, rows, folding, scratch);
  return Status::ok;
}

/// The tokens of a layer that takes over what another one chose, and what that one has decided to keep.
template <class R>
Status Condenser<R>::name_followed(StepView<Cpu>& view, Scratch& scratch) const {
  if (!pipeline_.reuse.follows(view.layer)) return Status::ok;
  const index_t heads = shape_.kv_heads;
  const Layer &own = layers_[view.layer], &first = layers_[pipeline_.reuse.first(view.layer)];
  if (first.seen != view.seen) return Status::order_violation;
  const bool decided = first.waits && first.leaves;
  auto* slots = scratch.take<index_t>(2 * heads + 1);
  if (slots == nullptr) return Status::workspace_too_small;
  index_t* offset = slots + heads;
  offset[0] = 0;
  for (index_t h = 0; h < heads; ++h) {
    slots[h] = decided ? first.count[h] : first.now.slots(h);
    offset[h + 1] = offset[h] + slots[h];
  }
  if (offset[heads] > view.total()) return Status::incompatible;
  auto* tokens = scratch.take<std::int32_t>(offset[heads]);
  if (tokens == nullptr) return Status::workspace_too_small;
  for (index_t h = 0; h < heads; ++h)
    for (index_t i = 0, from = first.now.offset[h]; i < slots[h]; ++i) tokens[offset[h] + i] = first.now.ids[from + (decided ? first.kept[from + i] : i)];
  view.followed = {{own.next.ids.data(), view.offset, heads}, {tokens, offset, heads}, slots};
  return Status::ok;
}

/// One list for the heads of a layer.
template <class R>
Status Condenser<R>::agree(index_t* count, std::int32_t* kept, const index_t* offset, Scratch scratch) const {
  const index_t heads = shape_.kv_heads, slots = offset[1] - offset[0];
  Ballot ballot;
  if (const Status s = ballot.begin(slots, heads, scratch); s != Status::ok) return s;
  for (index_t h = 0; h < heads; ++h) ballot.add(kept + offset[h], count[h]);
  for (index_t h = 0; h < heads; ++h) count[h] = ballot.settle(options_.agreement, kept + offset[h]);
  return Status::ok;
}

template <class R>
Status Condenser<R>::settle(Context<Cpu>& ctx) {
  if (options_.sharing != Sharing::per_sequence) return Status::ok;
  const index_t heads = shape_.kv_heads, slots = layers_[0].now.slots(0);
  bool any = false;
  for (const Layer& l : layers_) {
    if (l.settled || l.now.slots(0) != slots) return Status::order_violation;
    any = any || l.leaves;
  }
  if (any) {
    Scratch scratch(ctx.workspace());
    Ballot ballot;
    if (const Status s = ballot.begin(slots, heads * shape_.layers, scratch); s != Status::ok) return s;
    for (const Layer& l : layers_)
      for (index_t h = 0; h < heads; ++h) ballot.add(l.kept.data() + l.now.offset[h], l.count[h]);
    for (Layer& l : layers_)
      for (index_t h = 0; h < heads; ++h) l.count[h] = ballot.settle(options_.agreement, l.kept.data() + l.now.offset[h]);
  }
  for (Layer& l : layers_) l.settled = true, l.leaves = l.count[0] < slots;
  return Status::ok;
}

}  // namespace kvcondense::external

#include <kvcondense/external/condenser_moves.hpp>
