#pragma once

#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/column_pair.hpp>
#include <kvcondense/cache/folding.hpp>

namespace kvcondense {
/// What the coming step will see, without attention and rows.
template <Backend B, class R>
StepView<B> Cache<B, R>::step_view(index_t layer, Phase phase) const {
  const Layer& l = layers_[layer];
  if (phase == Phase::automatic)
    phase = l.counters.pending == l.counters.seen ? Phase::prefill_end : Phase::decode;
  StepView<B> view;
  view.shape = shape_, view.layer = layer, view.phase = phase;
  view.appended = l.counters.pending, view.seen = l.counters.seen, view.stepped = l.counters.stepped + view.appended;
  view.next_position = l.next_position();
  if (phase == Phase::decode || phase == Phase::turn) view.generated = l.counters.seen - l.counters.prompt;
  view.offset = l.offset.data(), view.counted = l.counted;
  return view;
}

/// Whether the inputs in the view are what the pipeline reads in this step.
template <Backend B, class R>
Status Cache<B, R>::check_input(const StepView<B>& view, Input what) const {
  const bool probe = view.phase == Phase::probe;
  if (view.phase == Phase::turn || !(probe ? pipeline_.asks_with(what, view.layer) : what != Input::hidden_norms && inputs(view.layer).has(what)))
    return Status::ok;
  const StepInputs& in = view.inputs;
  if (what == Input::attention) {
    if (!reads_attention(view)) return Status::ok;
    const AttentionView& a = in.attention;
    if (a.mass.data == nullptr || a.rows <= 0) return Status::missing_input;
    return rows_fit(a.mass, view.offset, view.heads()) ? Status::ok : Status::shape_mismatch;
  }
  if (what == Input::queries) {
    const index_t rows = in.queries.extent[1];
    const index_t chosen_by = plan_.drawn > 0 ? retrieval_.watch().asks(view.appended) : !retrieval_.holds() ? 0 : view.appended > retrieval_.longest_call() ? 1 : view.appended;
    // Where nobody asks for a number of them, the newest is read, if there is one: by a fold, a codec or a fit.
    const index_t newest = std::min<index_t>(1, view.appended);
    const index_t least = probe ? view.appended : std::max({newest, queries(view.layer).of(view.appended), chosen_by});
    if (in.queries.data == nullptr || rows < least) return Status::missing_input;
    const bool fits = in.queries.extent[0] == shape_.q_heads && in.queries.extent[2] == shape_.head_dim;
    return fits && rows <= view.appended ? Status::ok : Status::shape_mismatch;
  }
  return kvcondense::check_input(in, what, shape_, view.appended);
}

template <Backend B, class R>
Status Cache<B, R>::check_inputs(const StepView<B>& view) const {
  if (view.inputs.incoming < 0) return Status::invalid_argument;
  for (const Input i : all_inputs)
    if (const Status s = check_input(view, i); s != Status::ok) return s;
  return Status::ok;
}

template <Backend B, class R>
const char* Cache<B, R>::missing(index_t layer, const StepInputs& inputs, Phase phase) const {
  if (layer < 0 || layer >= shape_.layers) return nullptr;
  StepView<B> view = step_view(layer, phase);
  view.inputs = inputs;
  for (const Input i : all_inputs)
    if (check_input(view, i) == Status::missing_input) return to_string(i);
  return nullptr;
}

/// The tokens of a layer that takes over what another one chose, and of that one, which has made this step already.
template <Backend B, class R>
Status Cache<B, R>::name_followed(StepView<B>& view, Scratch& scratch) const {
  if (!pipeline_.reuse.follows(view.layer)) return Status::ok;
  const Layer &own = layers_[view.layer], &first = layers_[pipeline_.reuse.first(view.layer)];
  // What came to it since is not looked up: no slot here holds it.
  const index_t ahead = first.counters.pending;
  if (first.counters.seen - ahead != own.counters.seen) return Status::order_violation;
  if (first.total() - ahead * shape_.kv_heads > own.total()) return Status::incompatible;
  auto* slots = scratch.take<index_t>(shape_.kv_heads);
  if (slots == nullptr) return Status::workspace_too_small;
  const auto list = [&](const Layer& l) {
    const RaggedView<std::int32_t> tokens{scratch.take<std::int32_t>(l.total()), l.offset.data(), shape_.kv_heads};
    for (index_t h = 0; tokens.data != nullptr && h < shape_.kv_heads; ++h) l.heads[h].ids.copy_to(0, l.heads[h].slots(), tokens.row(h));
    return tokens;
  };
  view.followed = {list(own), list(first), slots};
  for (index_t h = 0; h < shape_.kv_heads; ++h) slots[h] = first.heads[h].slots() - ahead;
  return view.followed.own.data != nullptr && view.followed.first.data != nullptr ? Status::ok : Status::workspace_too_small;
}

template <Backend B, class R>
Status Cache<B, R>::run_step(Context<B>& ctx, index_t layer, const StepInputs& inputs, Phase phase,
                             const index_t* model_budget) {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  Layer& l = layers_[layer];
  const bool turn = phase == Phase::turn, probe = phase == Phase::probe;
  if ((l.counters.pending == 0) != turn || (probe && l.counted > 0)) return Status::order_violation;
  StepView<B> view = step_view(layer, phase);
  view.inputs = inputs, view.model_budget = model_budget;
  if (const Status s = check_inputs(view); s != Status::ok) return s;
  if (probe && !pipeline_.probes(layer)) return Status::ok;
  l.fetch();
  Scratch scratch(ctx.workspace());
  const index_t heads = shape_.kv_heads, total = l.total(), rows = inputs.queries.extent[1];
  const bool learns = view.phase == Phase::prefill_end;
  if (groups_.most() > 1 && ctx.workspace().size() < across_bytes(group_slots(layer), ctx.workers())) return Status::workspace_too_small;
  index_t most = 0;
  for (index_t h = 0; h < heads; ++h) most = std::max(most, l.heads[h].slots());
  if (!probe && !turn && (retrieval_.holds() || learns)) {  // what comes at the end of a step may not fail
    if (retrieval_.holds() && ctx.workspace().size() < choice_bytes(most, rows)) return Status::workspace_too_small;
    if (learns && ctx.workspace().size() < fit_bytes(most, ctx.workers())) return Status::workspace_too_small;
  }
  std::span<std::byte> column_scratch;
  if (!take_columns(l, view, ctx.workers(), scratch, column_scratch)) return Status::workspace_too_small;
  // A step that is refused must not have counted its attention: policies work on copies, unless what they do can be undone
  // or the step can no longer be refused.
  RaggedView<float> lanes[cache::max_lanes];
  const index_t lane_count = plan_.lanes;
  bool lent = lends_lanes(l, view, scratch.left(), ctx.workers());
  if (Scratch s = scratch; lent && (lent = l.lend_lanes(lane_count, s, lanes))) scratch = s;
  else if (!l.copy_lanes(lane_count, scratch, lanes)) return Status::workspace_too_small;
  cache::NewestNumbers<Layer> newest(lent && evict::touches(pipeline_.source) == evict::Touches::newest ? &l : nullptr, lane_count, view.appended);
  index_t nan = 0;
  evict::KeepSet keep{{scratch.take<std::int32_t>(total), l.offset.data(), heads},
                      scratch.take<index_t>(heads),
                      scratch.take<index_t>(heads), &nan, scratch.take<prim::Ends>(heads)};
  if (keep.slots.data == nullptr || keep.count == nullptr || keep.budget == nullptr || keep.ends == nullptr)
    return Status::workspace_too_small;

  const cache::LayerRows<Layer, true> keys(l);
  const cache::LayerRows<Layer, false> values(l);
  CacheShape scaled = shape_;
  scaled.softmax_scale = logit_scale();
  const cache::ReadRotation rotation{recipe_.position.raw_keys ? &rope_ : nullptr,
                                     recipe_.position.rotated_input ? l.pending_positions.data() : nullptr, control(), reach()};
  const cache::LayerColumns<Layer> columns(l, scaled, rotation, inputs.queries, column_scratch);
  view.keys = &keys, view.values = &values;
  if (!column_scratch.empty()) view.columns = &columns;
  const std::span<const RaggedView<float>> all_lanes(lanes, static_cast<std::size_t>(lane_count));
  const auto lane_views = all_lanes.first(static_cast<std::size_t>(pipeline_.lanes()));
  const auto grade_lanes = all_lanes.subspan(lane_views.size(), static_cast<std::size_t>(graded_ ? saliency_.lanes() : 0));
  const auto fold_lanes = all_lanes.subspan(lane_views.size() + grade_lanes.size());
  if (probe) {  // only the policy learns something; the tokens stay pending
    const Status s = evict::observe_probe(pipeline_.source, ctx, view, lane_views, scratch);
    for (index_t h = 0; h < heads && s == Status::ok; ++h) l.take_lanes(lane_views, h, cache::Kept::all(l.heads[h].slots()));
    return s;
  }
  for (index_t h = 0; h < heads; ++h) {
    keep.count[h] = keep.budget[h] = l.heads[h].slots();
    keep.ends[h] = {-1, 0};
  }
  if (const Status s = pipeline_.observe(ctx, view, lane_views); s != Status::ok) return l.trim(), s;
  if (graded_)
    if (const Status s = saliency_.observe(ctx, view, grade_lanes); s != Status::ok) return s;
  if constexpr (can_merge)
    if (merging_) {
      if (fold_.place >= 0) mark_places(l, fold_lanes[static_cast<std::size_t>(fold_.place)]);
      if (const Status s = merger_.observe(ctx, view, fold_lanes); s != Status::ok) return s;
    }
  float* drawn = nullptr;
  if (plan_.drawn > 0 && !turn) {
    drawn = scratch.take<float>(total * plan_.drawn);
    if (drawn == nullptr) return Status::workspace_too_small;
    if (const Status s = watch(ctx, view, drawn); s != Status::ok) return s;
  }
  const bool fires = pipeline_.fires(view);
  if (fires) {
    Scratch lists = scratch;
    if (const Status s = name_followed(view, lists); s != Status::ok) return s;
    if (const Status s = pipeline_.choose(ctx, view, lane_views, merging_ ? keep.with_lists() : keep, lists); s != Status::ok) return s;
  }
  cache::Folding folding;
  if constexpr (can_merge)
    if (const Status s = !merging_ ? Status::ok : fold(ctx, view, fold_lanes, keep, folding, scratch); s != Status::ok) return s;
  RaggedView<float> scores{nullptr, l.offset.data(), heads};
  if (graded_)
    if (const Status s = grade(ctx, view, grade_lanes, keep, scores, scratch); s != Status::ok) return s;
  if (const Status s = commit(ctx, layer, keep, all_lanes, scores, inputs.queries, folding, learns, scratch); s != Status::ok) return s;
  keep_drawn(l, keep, drawn);
  newest.accept();

  index_t kept = 0, asked = 0;
  for (index_t h = 0; h < heads; ++h) kept += keep.count[h], asked += keep.budget[h];
  if (fires) l.counters.budget_asked = asked, l.counters.budget_met = kept;
  l.counters.evictions += kept < total;
  l.counters.evicted_slots += total - kept;
  l.counters.nan_scores += nan;
  if (l.window.most() > 0 && !turn)
    l.window.push(inputs.queries, l.pending_positions.data() + l.counters.pending - rows, l.counters.seen - 1);
  if (learns) learn_prompt(ctx, layer, inputs.queries);
  if (view.phase != Phase::prefill_chunk) share_rows(ctx, layer);
  refresh_index(ctx, layer, 0);
  hold_units(ctx, layer, inputs.queries, view.phase, kept < total);
  for (auto& head : l.heads) head.open.settle(l.counters.seen - 1, fold_.gate.window);
  l.settle();
  if (view.phase == Phase::prefill_chunk || view.phase == Phase::prefill_end) l.counters.prompt = l.counters.seen;
  l.update_offsets();
  return Status::ok;
}

template <Backend B, class R>
Status Cache<B, R>::grade(Context<B>& ctx, const StepView<B>& view, evict::LaneViews lanes, const evict::KeepSet& keep,
                          RaggedView<float>& scores, Scratch& scratch) const {
  bool any = false;
  const auto& heads = layers_[view.layer].heads;
  for (index_t h = 0; h < heads.size(); ++h) any = any || heads[h].flushes(cache::kept_of(keep, h));
  if (!any) return Status::ok;
  scores.data = scratch.take<float>(view.total());
  auto* shield = scratch.take<evict::Protected>(heads.size());
  if (scores.data == nullptr || shield == nullptr) return Status::workspace_too_small;
  saliency_.protect_ends(view, shield);
  if (const Status s = saliency_.rank(ctx, view, lanes, shield, scores, scratch); s != Status::ok) return s;
  for (index_t h = 0; h < heads.size(); ++h)
    if (keep.count[h] < heads[h].slots()) cache::gather_down(scores.row(h), cache::kept_of(keep, h));
  return Status::ok;
}

template <Backend B, class R>
Status Cache<B, R>::commit(Context<B>& ctx, index_t layer, const evict::KeepSet& keep,
                           std::span<const RaggedView<float>> lanes, RaggedView<float> scores,
                           TensorView<const float, 3> queries, const cache::Folding& folding, bool learns, Scratch scratch) {
  Layer& l = layers_[layer];
  const index_t floats = plan_.commit_floats;
  float* rows = scratch.take<float>(floats * ctx.workers());
  if (rows == nullptr) return Status::workspace_too_small;
  Status room = Status::ok;
  if constexpr (can_merge) room = reserve_fold(l, folding);
  for (index_t h = 0; h < shape_.kv_heads && room == Status::ok; ++h)
    room = l.heads[h].reserve_commit(cache::kept_of(keep, h));
  if (room != Status::ok) return l.trim(), room;
  if (const Status s = reserve_index(layer, learns); s != Status::ok) return l.trim(), s;
  // Nothing below can fail.
  if constexpr (can_merge) commit_fold(ctx, l, folding, queries);
  ctx.parallel(shape_.kv_heads, [&](index_t h, index_t worker) {
    auto& head = l.heads[h];
    const auto kept = cache::kept_of(keep, h);
    l.take_lanes(lanes, h, kept);
    const auto done = head.commit(kept, rows + worker * floats,
                                  scores.data == nullptr ? nullptr : scores.row(h),
                                  {queries, h * shape_.group(), queries.data == nullptr ? 0 : shape_.group()},
                                  folding.any ? folding.links.to.row(h) : nullptr);
    head.repaired += done.repaired;
    head.coded_again += done.coded_again;
  });
  return Status::ok;
}

template <Backend B, class R>
void Cache<B, R>::truncate_layer(index_t layer, index_t newest) {
  Layer& l = layers_[layer];
  l.truncate(l.counters.seen - newest);
  if constexpr (can_merge)
    if (fold_.state > 0)
      for (auto& head : l.heads) merger_.truncate(l.counters.seen, head.state.data());
}

template <Backend B, class R>
Status Cache<B, R>::truncate(index_t tokens) {
  if (tokens < 0) return Status::out_of_range;
  for (const Layer& l : layers_)
    if (tokens > l.counters.seen) return Status::out_of_range;
  for (const Layer& l : layers_)
    if (tokens < l.counters.seen && l.counted > 0) return Status::order_violation;
  for (index_t layer = 0; layer < layers_.size(); ++layer) {
    truncate_layer(layer, layers_[layer].counters.seen - tokens);
    refresh_index(Context<B>{}, layer, layers_[layer].counters.pending);
  }
  return Status::ok;
}

template <Backend B, class R>
Status Cache<B, R>::remove(Context<B>& ctx, index_t first, index_t last) {
  if (first < 0 || last < first) return Status::out_of_range;
  for (const Layer& l : layers_) {
    if (last > l.counters.seen) return Status::out_of_range;
    if (l.counters.pending > 0) return Status::order_violation;
  }
  Scratch scratch(ctx.workspace());
  float* rows = scratch.take<float>(plan_.commit_floats);
  if (rows == nullptr) return Status::workspace_too_small;
  for (Layer& l : layers_)
    for (auto& h : l.heads)
      if (h.ids.below(first) < h.ids.below(last))
        if (const Status s = h.ids.reserve_list(); s != Status::ok) return s;
  for (Layer& l : layers_) {
    for (index_t at = 0; at < l.heads.size(); ++at) {
      auto& h = l.heads[at];
      if (first <= h.open.token() && last > h.open.token()) h.open.clear();
      const index_t from = h.ids.below(first), to = h.ids.below(last);
      if (from == to) continue;
      const auto kept = cache::Kept::without(from, to, h.slots());
      h.keep_slots(kept);
      if (plan_.drawn > 0) l.index[at].keep(kept);
      h.coded_again += h.compact(rows);
    }
    l.update_offsets();
    l.held.drop();
  }
  for (index_t layer = 0; layer < layers_.size(); ++layer)
    refresh_index(ctx, layer, 0);
  return Status::ok;
}

template <Backend B, class R>
Expected<Cache<B, R>> Cache<B, R>::fork() const {
  auto copy = make(shape_, recipe_, *memory_);
  if (!copy) return copy.status();
  Status s = rope_.fork(copy->rope_);
  for (index_t i = 0; s == Status::ok && i < layers_.size(); ++i) s = layers_[i].fork(copy->layers_[i]);
  if (s != Status::ok) return s;
  return copy;
}

template <Backend B, class R>
Report Cache<B, R>::report() const {
  Report r;
  r.kernel = r.key_kernel = r.value_kernel = prim::cpu::row_ops().name;
  // Of the first head that codes; raw keys are turned row by row before they are multiplied.
  bool keys_named = recipe_.position.raw_keys, values_named = false;
  const auto name = [](const auto& column, bool sums, bool& named, const char*& kernel) {
    if (named || column.flush_rule().block == 0) return;
    named = true;
    if (const char* codes = column.coded().kernel(sums); codes != nullptr) kernel = codes;
  };
  r.fixed_bytes = layers_.bytes() + rope_.bytes();
  for (const Layer& l : layers_) {
    r.tokens = std::max(r.tokens, l.counters.seen);
    r.evictions += l.counters.evictions;
    r.evicted_slots += l.counters.evicted_slots;
    r.merged_slots += l.counters.merged_slots;
    r.budget_asked += l.counters.budget_asked;
    r.budget_met += l.counters.budget_met;
    r.nan_scores += l.counters.nan_scores;
    r.fixed_bytes += l.heads.bytes() + l.offset.bytes() + l.pending_positions.bytes() + l.window.bytes();
    r.dense_bytes += static_cast<std::size_t>(l.counters.seen * shape_.kv_heads * (shape_.head_dim + shape_.values())) * 2;
    r.fixed_bytes += l.index.bytes();
    r.index_bytes += l.held.bytes();
    for (const auto& i : l.index) r.index_bytes += i.bytes();
    for (const auto& h : l.heads) {
      r.slots += h.slots();
      r.side_bytes += h.side_bytes();
      r.repaired_numbers += h.repaired;
      r.coded_again += h.coded_again;
      const auto column = [&](const auto& c) {
        r.exact_bytes += c.sinks().page_bytes() + c.window().page_bytes();
        r.coded_bytes += c.coded().page_bytes();
        r.shared_bytes += c.shared_bytes();
        const auto dead = [&](const auto& s) {
          r.dead_bytes += static_cast<std::size_t>(s.dead()) * s.page_payload() / static_cast<std::size_t>(s.page_slots());
        };
        dead(c.sinks()), dead(c.coded()), dead(c.window());
      };
      column(h.keys), column(h.values);
      name(h.keys, false, keys_named, r.key_kernel), name(h.values, true, values_named, r.value_kernel);
      const Span layers = layer_group(&l - layers_.begin()), heads = head_group(&h - l.heads.begin());
      const auto across = [&](auto part) {
        using C = std::remove_cvref_t<decltype(h.*part)>;
        const C* all[max_row_group];
        index_t n = 0, mine = 0;
        for (index_t i = 0; i < layers.count; ++i)
          for (index_t j = 0; j < heads.count; ++j) {
            const auto& one = layers_[layers.first + i].heads[heads.first + j];
            if (&one == &h) mine = n;
            all[n++] = &(one.*part);
          }
        cache::count_across<C>(all, n, mine, r);
      };
      if (layers.count * heads.count > 1) across(&Layer::Head::keys), across(&Layer::Head::values);
    }
  }
  return r;
}

template <Backend B, class R>
Status Cache<B, R>::read(index_t layer, index_t head, index_t first, TensorView<float, 2> keys,
                         TensorView<float, 2> values) const {
  if (layer < 0 || layer >= shape_.layers || head < 0 || head >= shape_.kv_heads) return Status::out_of_range;
  const auto& h = layers_[layer].heads[head];
  const index_t n = keys.extent[0];
  if (values.extent[0] != n || keys.extent[1] != shape_.head_dim || values.extent[1] != shape_.values() ||
      keys.stride[1] != 1 || values.stride[1] != 1)
    return Status::shape_mismatch;
  if (first < 0 || n < 0 || first + n > h.slots()) return Status::out_of_range;
  h.keys.decode_from(first, {keys.data, n, keys.stride[0]});
  h.values.decode_from(first, {values.data, n, values.stride[0]});
  return Status::ok;
}

}  // namespace kvcondense
