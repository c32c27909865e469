#pragma once

#include <kvcondense/cache/cuda_cache.cuh>

namespace kvcondense {

template <class R>
StepView<Cuda> Cache<Cuda, R>::step_view(index_t layer, Phase phase) const {
  const Layer& l = layers_[layer];
  if (phase == Phase::automatic) phase = l.counters.pending == l.counters.seen ? Phase::prefill_end : Phase::decode;
  StepView<Cuda> view;
  view.shape = shape(), view.layer = layer, view.phase = phase;
  view.appended = l.counters.pending, view.seen = l.counters.seen, view.next_position = l.next_position();
  view.stepped = l.counters.stepped + view.appended;
  if (phase == Phase::decode || phase == Phase::turn) view.generated = l.counters.seen - l.counters.prompt;
  view.offset = l.offset.data(), view.word_offset = l.device_offset();
  return view;
}

template <class R>
Status Cache<Cuda, R>::check_input(const StepView<Cuda>& view, Input what) const {
  const bool probe = view.phase == Phase::probe;
  if (view.phase == Phase::turn || !(probe ? pipeline_.asks_with(what, view.layer) : (what != Input::hidden_norms && (pipeline_.inputs(view.layer) | (graded_ ? saliency_.inputs() : Inputs{}) | fold_.inputs).has(what)) || (what == Input::queries && (retrieval_.asks_queries() || codec_queries()))))
    return Status::ok;
  if (what == Input::queries) {
    const TensorView<const float, 3>& q = view.inputs.queries;
    const index_t chosen_by = retrieval_.watches() ? recipe_.retrieve.pipeline().watch().asks(view.appended) : !retrieval_.holds() ? 0 : view.appended > retrieval_.longest_call() ? 1 : view.appended;
    const index_t least = probe ? view.appended : std::max({std::min<index_t>(1, view.appended), queries(view.layer).of(view.appended), chosen_by});
    if (q.data == nullptr || q.extent[1] < least) return Status::missing_input;
    return q.extent[0] == shape().q_heads && q.extent[2] == shape().head_dim && q.extent[1] <= view.appended ? Status::ok : Status::shape_mismatch;
  }
  if (what != Input::attention) return kvcondense::check_input(view.inputs, what, shape(), view.appended);
  if (!reads_attention(view)) return Status::ok;
  const AttentionView& a = view.inputs.attention;
  if (a.mass.data == nullptr || a.rows <= 0) return Status::missing_input;
  return of_layer(layers_[view.layer], a.mass) ? Status::ok : Status::shape_mismatch;
}

/// How many slots of each head stay, and whether any leaves: worked out from the numbers by which the device selects, so that
/// nobody waits for it. Where these do not say, its counts are waited for; where codes cannot move alone, so are lists.
template <class R>
Status Cache<Cuda, R>::count_kept(const Context<Cuda>& ctx, const StepView<Cuda>& view, const evict::KeepSet& keep, cache::CudaKept& kept, bool& leaves) const {
  bool known = true;
  for (index_t h = 0; h < view.heads(); ++h) {
    const bool ends = keep.ends[h].prefix >= 0;
    // What another layer kept is counted as its lists are made.
    kept.set_size(h, ends ? keep.ends[h].size() : pipeline_.reuse.follows(view.layer) ? keep.count[h] : evict::kept_slots(pipeline_.select, view.slots(h), keep.budget[h], pipeline_.protect.of(view, h)));
    known = known && kept.size(h) >= 0;
  }
  if (!known) {
    if (const Status s = ctx.wait(); s != Status::ok) return s;
    for (index_t h = 0; h < view.heads(); ++h)
      if (kept.size(h) < 0) kept.set_size(h, keep.count[h]);
  }
  leaves = false;
  for (index_t h = 0; h < view.heads(); ++h) leaves = leaves || kept.size(h) < view.slots(h);
  return leaves && wants_lists(view) && !finds_sets(view) ? kept.tell(ctx, keep) : Status::ok;  // what is counted anew is told then
}

/// Lists that keep all and copies of the lanes.
template <class R>
Status Cache<Cuda, R>::begin(Context<Cuda>& ctx, Layer& l, const StepView<Cuda>& view, Scratch& scratch, evict::KeepSet& keep,
                             std::span<RaggedView<float>> lanes) {
  const index_t heads = shape().kv_heads, total = l.total();
  keep = {view.ragged(scratch.take<std::int32_t>(total)), scratch.take_steering<index_t>(heads), scratch.take_steering<index_t>(heads),
          counts_.data() + 1, scratch.take_steering<prim::Ends>(heads)};
  for (auto& lane : lanes) lane = view.ragged(scratch.take<float>(total));
  bool room = keep.slots.data != nullptr && keep.count != nullptr && keep.budget != nullptr && keep.ends != nullptr &&
              scratch.left() >= Scratch::bytes_for<std::int32_t>(total) + range_bytes() + pipeline_bytes(l.longest(), total, l.counters.pending) +
                                      fold_bytes(total) + grade_bytes(l.longest(), total, l.counters.pending) + retrieval_.step_bytes(shape(), l.longest(), l.counters.pending, view.phase == Phase::prefill_end) + held_bytes(l.counters.pending);
  for (const auto& lane : lanes) room = room && lane.data != nullptr;
  if (!room) return Status::workspace_too_small;
  // Policies work on copies: a step that is refused later must not have counted its attention.
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const auto lane = static_cast<index_t>(i);
    const Status s = prim::HeadSlots::read<float>(ctx, std::as_const(l.lanes[lane]).view(), l.counters.pending, plan_.fresh(lane), 0.0f, lanes[i]);
    if (s != Status::ok) return s;
  }
  for (index_t h = 0; h < heads; ++h) {
    keep.count[h] = keep.budget[h] = l.slots(h);
    keep.ends[h] = {-1, 0};
  }
  return Status::ok;
}

template <class R>
Status Cache<Cuda, R>::run_step(Context<Cuda>& ctx, index_t layer, const StepInputs& inputs, Phase phase, const index_t* model_budget) {
  if (layer < 0 || layer >= shape().layers) return Status::out_of_range;
  Layer& l = layers_[layer];
  if (l.torn) return Status::device_error;
  const bool turn = phase == Phase::turn, probe = phase == Phase::probe;
  if ((l.counters.pending == 0) != turn) return Status::order_violation;
  if (inputs.incoming < 0) return Status::invalid_argument;
  StepView<Cuda> view = step_view(layer, phase);
  view.inputs = inputs, view.model_budget = model_budget;
  for (const Input i : all_inputs)
    if (const Status s = check_input(view, i); s != Status::ok) return s;
  if (probe && !pipeline_.probes(layer)) return Status::ok;
  const bool asks = probe || ((queries(layer).rows != AttentionNeed::Rows::none || retrieval_.watches()) && !turn);
  const bool evicts_by_queries = probe || (pipeline_.queries(layer).rows != AttentionNeed::Rows::none && !turn);
  const bool sums_heads = (pipeline_.source.one_set() && (pipeline_.reads_attention(view) || (evicts_by_queries && (pipeline_.lanes() > 0 || pipeline_.fires(view))))) ||
                          (graded_ && !turn && !probe && saliency_.source.one_set() &&
                           (saliency_.attention().rows != AttentionNeed::Rows::none || saliency_.queries().rows != AttentionNeed::Rows::none));
  if (sums_heads && !l.equally_long()) return Status::not_supported;
  const index_t heads = shape().kv_heads, total = l.total(), rows = inputs.queries.extent[1];

  // What the step before may still read is written anew.
  if (const Status s = l.fence.wait(); s != Status::ok) return s;
  l.learn();
  Scratch scratch(ctx.workspace(), l.steering);
  const auto room = asks ? static_cast<index_t>(cache::CudaLayerColumns<Layer>::workspace_bytes(shape(), rotation_, {reach(), control()}, std::max(rows, plan_.query_rows), l.longest())) : 0;
  std::byte* const column_scratch = scratch.take<std::byte>(room);
  if (column_scratch == nullptr) return Status::workspace_too_small;
  evict::KeepSet keep;
  cache::CudaKept kept;
  if (const Status s = kept.make(heads, [&](index_t h) { return l.slots(h); }); s != Status::ok) return s;
  RaggedView<float> lanes[max_lanes];
  const std::span<RaggedView<float>> all(lanes, static_cast<std::size_t>(plan_.lanes));
  const evict::LaneViews own = all.first(static_cast<std::size_t>(pipeline_.lanes())), others = all.subspan(own.size());
  const evict::LaneViews of_grades = others.first(static_cast<std::size_t>(grade_lanes())), fold_lanes = others.subspan(of_grades.size());
  if (const Status s = begin(ctx, l, view, scratch, keep, all); s != Status::ok) return s;
  const SlotRows<Cuda> keys = l.keys.rows(l.device_slots(), l.longest()), values = l.values.rows(l.device_slots(), l.longest());
  view.keys = &keys, view.values = &values;
  CacheShape scaled = shape();
  scaled.softmax_scale = logit_scale();
  const cache::CudaLayerColumns<Layer> columns(l, scaled, rotation_, recipe_.position.rotated_input, {reach(), control()}, inputs.queries, {column_scratch, static_cast<std::size_t>(room)});
  if (asks) view.columns = &columns;
  if (probe) {  // only the policy learns something; the tokens stay pending
    const Status s = evict::observe_probe(pipeline_.source, ctx, view, own, scratch);
    return s == Status::ok ? write_lanes(ctx, l, all, {nullptr, l.device_offset(), heads}, l.device_slots()) : s;
  }
  if (asks && l.window.most() > 0)
    if (const Status s = l.window.join(ctx, inputs.queries); s != Status::ok) return s;

  Context<Cuda> rest = ctx.with_workspace(scratch.rest());  // words of sources may take what no one has yet
  if (const Status s = pipeline_.observe(rest, view, own); s != Status::ok) return s;
  if (const Status s = graded_ ? saliency_.observe(rest, view, of_grades) : Status::ok; s != Status::ok) return s;
  if constexpr (can_merge) {
    if (fold_.place >= 0)
      if (const Status s = mark_places(rest, l, fold_lanes[static_cast<std::size_t>(fold_.place)]); s != Status::ok) return s;
    if (const Status s = fold_.active ? merger_.observe(rest, view, fold_lanes) : Status::ok; s != Status::ok) return s;
  }
  float* drawn = nullptr;  // what a retrieval stage is told of attention
  if (retrieval_.watches() && !turn) {
    drawn = scratch.take<float>(total * recipe_.retrieve.pipeline().watch().numbers(shape()));
    if (const Status s = drawn == nullptr ? Status::workspace_too_small : retrieval_.watch(ctx, view, drawn); s != Status::ok) return s;
  }
  cache::NewestQueries newest;  // that may choose what later calls read
  if (retrieval_.holds())
    if (const Status s = newest.take(inputs.queries, retrieval_.longest_call(), l.pending_positions.span()); s != Status::ok) return s;
  const bool fires = pipeline_.fires(view);
  bool leaves = false, changed = false, moved = false;
  cache::Folding folding;
  cache::IndexChange change;
  if (view.phase == Phase::prefill_end) change.lesson = &inputs.queries;
  const index_t prompt = view.phase == Phase::prefill_chunk || view.phase == Phase::prefill_end ? l.counters.seen : l.counters.prompt;
  // Not where `choose` has its own: its kernels may still read those when the host writes these.
  const bool sets = finds_sets(view);
  const auto index_room = static_cast<index_t>(retrieval_.step_steering_bytes(shape()));
  const std::span<std::byte> index_steering{scratch.take_steering<std::byte>(index_room), static_cast<std::size_t>(index_room)};
  const auto fold_room = static_cast<index_t>(fold_steering_bytes());
  const std::span<std::byte> fold_steering{scratch.take_steering<std::byte>(fold_room), static_cast<std::size_t>(fold_room)};
  const auto grade_room = static_cast<index_t>(grade_bytes(l.longest(), total, l.counters.pending)), grade_host = static_cast<index_t>(grade_steering_bytes());
  auto* const grade_scratch = scratch.take<std::byte>(grade_room);
  const std::span<std::byte> grade_steering{scratch.take_steering<std::byte>(grade_host), static_cast<std::size_t>(grade_host)};
  std::span<std::byte> fold_words;
  const auto stays = [&](index_t h) { return kept.size(h); };
  const auto act = [&]() -> Status {
    [[maybe_unused]] Scratch of_index(scratch.rest(), index_steering);
    if (fires) {
      Scratch lists = scratch;
      if (const Status s = name_followed(ctx, view, lists); s != Status::ok) return s;
      if (const Status s = pipeline_.choose(ctx, view, own, keep, lists); s != Status::ok) return s;
      if (const Status s = count_kept(ctx, view, keep, kept, leaves); s != Status::ok) return s;
      if (leaves && keep.ends[0].prefix >= 0)  // ends alone were named, of all heads
        if (const Status s = prim::KeepEnds<Cuda>::run(ctx, keep.ends, keep.slots, keep.count); s != Status::ok) return s;
    }
    if (fold_.active && (leaves || sets))
      if (const Status s = fold(ctx, view, fold_lanes, keep, kept, folding, fold_words, {scratch.rest(), fold_steering}); s != Status::ok) return s;
    if (sets)
      if (const Status s = count_left(ctx, view, keep, kept, leaves); s != Status::ok) return s;
    RaggedView<float> scores{};
    if (l.grades(kept))
      if (const Status s = grade(ctx, view, of_grades, scores, {{grade_scratch, static_cast<std::size_t>(grade_room)}, grade_steering}); s != Status::ok) return s;
    moved = leaves || l.unsettled();
    if constexpr (retrieves) {
      if (const Status s = retrieval_.reserve(ctx, layer, l, shape(), stays, leaves, fold_.active && (leaves || sets), keep, of_index, change); s != Status::ok) return s;
      if (retrieval_.may_ask(layer, l.counters.pending, rows, view.phase))
        if (const Status s = retrieval_.prepare_choice(ctx, layer, l, shape(), kept, wants_lists(view)); s != Status::ok) return s;
    }
    // A turn may change numbers of slots though nothing leaves, and code what `remove` has left though nothing is pending.
    if (moved || l.counters.pending > 0 || plan_.lanes > 0) {
      if (const Status s = l.reserve_codes(ctx, leaves, true, kept); s != Status::ok) return s;
      changed = true;
      if (const Status s = commit_fold(ctx, l, folding, inputs.queries, fold_words); s != Status::ok) return s;
      if (const Status s = leaves && plan_.summary ? take_means(ctx, l, keep, folding) : Status::ok; s != Status::ok) return s;
      if (const Status s = commit(ctx, l, keep, all, leaves, true, scores, inputs.queries, scratch); s != Status::ok) return s;
    }
    if constexpr (retrieves)
      if (const Status s = retrieval_.keep_drawn(ctx, layer, l, drawn, keep, leaves, scratch); s != Status::ok) return s;
    Status s = l.set_slots(ctx, stays);
    if constexpr (retrieves) {
      changed = true;
      if (s == Status::ok) s = retrieval_.learn(ctx, layer, l, shape(), change, scratch);
      if (s == Status::ok) s = retrieval_.refresh(ctx, layer, l, shape(), prompt, change);
    }
    if (s == Status::ok) s = l.open.settle(ctx, l.counters.pending, l.counters.seen - 1);
    return s;
  };
  const Status acted = act(), behind = l.fence.record(ctx);  // one that is refused may have started what reads `steering`
  l.torn = l.torn || (changed && (acted != Status::ok || behind != Status::ok));
  if (acted != Status::ok) return acted;
  if (behind != Status::ok) return behind;
  l.keys.stepped(stays), l.values.stepped(stays);
  if (fires) {
    l.counters.budget_asked = l.counters.budget_met = 0;
    for (index_t h = 0; h < heads; ++h) l.counters.budget_asked += keep.budget[h], l.counters.budget_met += kept.size(h);
  }
  l.folds = folding.decided;
  l.counters.evictions += leaves;
  l.counters.evicted_slots += total - l.total();
  if (asks) l.window.settle(l.pending_positions.span().last(static_cast<std::size_t>(rows)), l.counters.seen - 1);
  const bool lasts = retrieval_.asks(layer, l.counters.seen, l.counters.pending, rows, view.phase, leaves);
  l.counters.stepped_position = l.next_position();
  l.counters.stepped += l.counters.pending;
  l.counters.pending = 0;
  l.pending_positions.shrink(0);
  l.counters.prompt = prompt;
  const Status trimmed = moved ? l.trim(ctx) : l.open.trim(ctx, l.counters.seen, 0);
  l.torn = trimmed != Status::ok;  // what the step did is done
  const Status shared = l.torn || view.phase == Phase::prefill_chunk ? trimmed : share_rows(ctx, layer);
  return shared == Status::ok && lasts ? hold(ctx, layer, newest, view.phase == Phase::prefill_end) : shared;
}

template <class R>
Status Cache<Cuda, R>::write_lanes(Context<Cuda>& ctx, Layer& l, std::span<const RaggedView<float>> lanes, RaggedView<const std::int32_t> list,
                                   const index_t* count) {
  for (std::size_t i = 0; i < lanes.size(); ++i)
    if (const Status s = prim::HeadSlots::write<float>(ctx, lanes[i], list, count, l.lanes[static_cast<index_t>(i)].view()); s != Status::ok) return s;
  return Status::ok;
}

/// Rows, tokens and numbers of the slots that stay, by one list; then newest slots become codes. Nothing here needs memory.
template <class R>
Status Cache<Cuda, R>::commit(Context<Cuda>& ctx, Layer& l, const evict::KeepSet& keep, std::span<const RaggedView<float>> lanes, bool leaves,
                              bool codes, RaggedView<const float> scores, TensorView<const float, 3> queries, const Scratch& scratch) {
  Scratch left = scratch;
  auto* const key_ranges = left.take<prim::KeptRange>(l.keys.range_count());
  auto* const value_ranges = left.take<prim::KeptRange>(l.values.range_count());
  const RaggedView<std::int32_t> ids{left.take<std::int32_t>(l.total()), l.device_offset(), shape().kv_heads};
  const RaggedView<const std::int32_t> list{leaves ? keep.slots.data : nullptr, l.device_offset(), shape().kv_heads};
  const auto first = static_cast<std::int32_t>(l.counters.seen - l.counters.pending);
  Status s = prim::HeadSlots::read<std::int32_t>(ctx, std::as_const(l.ids).view(), l.counters.pending, first, 1, ids);
  if (s == Status::ok) s = prim::HeadSlots::write<std::int32_t>(ctx, ids, list, keep.count, l.ids.view());
  if (s == Status::ok) s = write_lanes(ctx, l, lanes, list, keep.count);
  if (s == Status::ok) s = l.keys.step(ctx, l.device_slots(), {list, keep.count}, leaves, codes, key_ranges, counts_.data(), scores, queries);
  return s == Status::ok ? l.values.step(ctx, l.device_slots(), {list, keep.count}, leaves, codes, value_ranges, counts_.data(), scores, queries) : s;
}

template <class R>
Status Cache<Cuda, R>::truncate(Context<Cuda>& ctx, index_t tokens) {
  if (tokens < 0) return Status::out_of_range;
  for (const auto& l : layers_) {
    if (l.torn) return Status::device_error;
    if (tokens > l.counters.seen) return Status::out_of_range;
  }
  Buffer<std::int32_t> ids(heap_memory());
  Buffer<index_t> stay(heap_memory());
  const index_t heads = shape().kv_heads;
  if (const Status s = stay.resize(layers_.size() * heads); s != Status::ok) return s;
  for (index_t layer = 0; layer < layers_.size(); ++layer) {  // nothing changes before all are known to do
    Layer& l = layers_[layer];
    if (const Status s = l.fence.wait(); s != Status::ok) return s;
    l.learn();
    const index_t gone = l.counters.seen - tokens, unstepped = std::min(gone, l.counters.pending);
    for (index_t h = 0; h < heads; ++h) {
      index_t& left = stay[layer * heads + h];
      left = l.slots(h) - unstepped;
      if (gone > unstepped) {
        if (const Status s = ids.resize(l.slots(h)); s != Status::ok) return s;
        if (const Status s = this->tokens(ctx, layer, h, {ids.data(), static_cast<std::size_t>(ids.size())}); s != Status::ok) return s;
        left = std::lower_bound(ids.begin(), ids.end(), tokens) - ids.begin();
      }
    }
  }
  for (index_t layer = 0; layer < layers_.size(); ++layer) {
    Layer& l = layers_[layer];
    const auto left = [&](index_t h) { return stay[layer * heads + h]; };
    const index_t gone = l.counters.seen - tokens, unstepped = std::min(gone, l.counters.pending);
    if (const Status s = l.cut(ctx, left, tokens); s != Status::ok) return l.torn = true, s;
    if (gone > unstepped)
      if (const Status s = l.open.clear(ctx); s != Status::ok) return l.torn = true, s;
    l.counters.stepped_position = std::max<index_t>(0, l.counters.stepped_position - (gone - unstepped));
    l.counters.pending -= unstepped;
    l.pending_positions.shrink(l.counters.pending);
    l.window.truncate(tokens);
    if constexpr (can_merge)
      for (index_t h = 0; h < heads && plan_.found > 0; ++h) merger_.truncate(tokens, l.found.data() + h * plan_.found);
    l.counters.seen = tokens, l.counters.prompt = std::min(l.counters.prompt, tokens);
    Status s = l.trim(ctx);
    if constexpr (retrieves) {
      if (s == Status::ok && gone > unstepped) s = retrieval_.remake(ctx, layer, l, shape(), left);
      retrieval_.forget(layer, tokens);
    }
    if (s != Status::ok) return l.torn = true, s;
  }
  return Status::ok;
}

template <class R>
Status Cache<Cuda, R>::remove(Context<Cuda>& ctx, index_t first, index_t last) {
  if (first < 0 || last < first) return Status::out_of_range;
  for (const Layer& l : layers_) {
    if (l.torn) return Status::device_error;
    if (last > l.counters.seen) return Status::out_of_range;
    if (l.counters.pending > 0) return Status::order_violation;
  }
  Buffer<std::int32_t> ids(heap_memory());
  Buffer<prim::Ends> ends(heap_memory());
  const index_t heads = shape().kv_heads;
  if (const Status s = ends.resize(layers_.size() * heads); s != Status::ok) return s;
  for (index_t layer = 0; layer < layers_.size(); ++layer) {  // nothing changes before all are known to do
    Layer& l = layers_[layer];
    if (ctx.workspace().size() < workspace_bytes(l.longest(), 1)) return Status::workspace_too_small;
    if (const Status s = l.fence.wait(); s != Status::ok) return s;
    l.learn();
    for (index_t h = 0; h < heads; ++h) {
      if (const Status s = ids.resize(l.slots(h)); s != Status::ok) return s;
      if (const Status s = this->tokens(ctx, layer, h, {ids.data(), static_cast<std::size_t>(ids.size())}); s != Status::ok) return s;
      const index_t from = std::lower_bound(ids.begin(), ids.end(), first) - ids.begin(), to = std::lower_bound(ids.begin(), ids.end(), last) - ids.begin();
      ends[layer * heads + h] = {from, ids.size() - to};
    }
  }
  const auto loses = [&](index_t layer) {
    bool leaves = false;
    for (index_t h = 0; h < heads; ++h) leaves = leaves || ends[layer * heads + h].size() < layers_[layer].slots(h);
    return leaves;
  };
  const auto reserve = [&](index_t layer) {
    Layer& l = layers_[layer];
    cache::CudaKept kept;
    Status s = kept.make(heads, [&](index_t h) { return l.slots(h); });
    if (s != Status::ok) return s;
    for (index_t h = 0; h < heads; ++h) kept.set_ends(h, ends[layer * heads + h]);
    s = l.reserve_codes(ctx, true, false, kept);
    if (s == Status::ok) s = l.settle(ctx), l.torn = s != Status::ok;  // pages of its own are those which are read
    return s;
  };
  for (index_t layer = 0; layer < layers_.size(); ++layer)
    if (const Status s = loses(layer) ? reserve(layer) : Status::ok; s != Status::ok) {
      for (index_t i = 0; i < layer; ++i) layers_[i].give_up(ctx);
      return s;
    }
  for (index_t layer = 0; layer < layers_.size(); ++layer) {
    Layer& l = layers_[layer];
    const prim::Ends* mine = &ends[layer * heads];
    const auto stays = [&](index_t h) { return mine[h].size(); };
    if constexpr (retrieves) retrieval_.forget(layer, -1);
    const auto close = [&] { return first <= l.open.token() && last > l.open.token() ? l.open.clear(ctx) : Status::ok; };
    if (!loses(layer)) {
      if (const Status s = close(); s != Status::ok) return l.torn = true, s;
      continue;
    }
    const StepView<Cuda> view = step_view(layer, Phase::turn);
    Scratch scratch(ctx.workspace(), l.steering);
    evict::KeepSet keep;
    RaggedView<float> lanes[max_lanes];
    const std::span<RaggedView<float>> all(lanes, static_cast<std::size_t>(plan_.lanes));
    Status s = begin(ctx, l, view, scratch, keep, all);
    for (index_t h = 0; h < heads && s == Status::ok; ++h) keep.ends[h] = mine[h];
    if (s == Status::ok) s = prim::KeepEnds<Cuda>::run(ctx, keep.ends, keep.slots, keep.count);
    cache::IndexChange change;
    if constexpr (retrieves)
      if (s == Status::ok) s = retrieval_.reserve(ctx, layer, l, shape(), stays, true, false, keep, scratch, change);
    if (s == Status::ok) {
      s = commit(ctx, l, keep, all, true, false, {}, {}, scratch);
      if constexpr (retrieves)
        if (s == Status::ok) s = retrieval_.keep_drawn(ctx, layer, l, nullptr, keep, true, scratch);
      if (s == Status::ok) s = l.set_slots(ctx, stays);
      if constexpr (retrieves)
        if (s == Status::ok) s = retrieval_.refresh(ctx, layer, l, shape(), l.counters.prompt, change);
      if (s == Status::ok) s = close();
      l.torn = s != Status::ok;
    }
    const Status behind = l.fence.record(ctx);
    l.torn = l.torn || (s == Status::ok && behind != Status::ok);
    if (s != Status::ok || behind != Status::ok) return s != Status::ok ? s : behind;
    l.keys.stepped(stays, false), l.values.stepped(stays, false);
    if (s = l.trim(ctx); s != Status::ok) return l.torn = true, s;
  }
  return Status::ok;
}

}  // namespace kvcondense
