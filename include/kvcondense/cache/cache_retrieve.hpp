#pragma once

#include <algorithm>
#include <numeric>

#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/cache_pages.hpp>
#include <kvcondense/cache/run_reader.hpp>
#include <kvcondense/cache/slot_union.hpp>

namespace kvcondense {

/// Whether a call of `attend` with so many query tokens chooses what it reads.
template <Backend B, class R>
bool Cache<B, R>::chooses(index_t layer, index_t tokens) const {
  if constexpr (may_retrieve) {
    const auto& index = layers_[layer].index;
    return retrieval_.active() && tokens <= retrieval_.longest_call() && !retrieval_.reads_all(layer) &&
           std::any_of(index.begin(), index.end(), [](const auto& i) { return i.covered > 0; });
  } else {
    return false;
  }
}

/// Scratch of one choice of units and what comes of it; everything but attention itself.
template <Backend B, class R>
std::size_t Cache<B, R>::choice_bytes(index_t slots, index_t tokens) const {
  std::size_t sum = 0;
  if constexpr (may_retrieve) {
    if (!retrieval_.active()) return 0;
    const index_t heads = shape_.kv_heads, rows = retrieval_.rows(shape_), most = retrieval_.most_units(slots) + 2;
    sum = Scratch::align + 5 * Scratch::bytes_for<index_t>(heads) +
          Scratch::bytes_for<float>(std::min(tokens, retrieval_.longest_call()) * shape_.q_heads * shape_.head_dim) +
          5 * Scratch::bytes_for<index_t>(rows + 1) + 2 * Scratch::bytes_for<std::int32_t>(rows * most) + Scratch::bytes_for<float>(rows) +
          Scratch::bytes_for<SlotRun>(rows * (most + 2)) + Scratch::bytes_for<float>(rows * most) +
          5 * Scratch::bytes_for<float>(rows * (slots + 2)) +
          retrieval_.workspace_bytes(shape_, slots, std::min(tokens, retrieval_.longest_call()));
  }
  return sum;
}

/// What a retrieval pipeline sees of a layer; false when the scratch is too small. `tokens` newest of the queries, the
/// last of which belong to the newest slots; tokens before the `end`th compete.
template <Backend B, class R>
bool Cache<B, R>::read_view(index_t layer, TensorView<const float, 3> queries, index_t tokens, index_t prompt, index_t end, Scratch& scratch,
                            retrieve::ReadView<B>& view) const {
  const Layer& l = layers_[layer];
  const index_t heads = shape_.kv_heads, dim = shape_.head_dim, skip = queries.extent[1] - tokens;
  auto* slots = scratch.take<index_t>(heads);
  auto* known = scratch.take<index_t>(heads);
  auto* prompts = scratch.take<index_t>(heads);
  float* q = scratch.take<float>(tokens * shape_.q_heads * dim);
  if (slots == nullptr || known == nullptr || prompts == nullptr || q == nullptr) return false;
  for (index_t h = 0; h < heads; ++h) {
    slots[h] = l.heads[h].slots();
    known[h] = std::min(l.index[h].covered, l.heads[h].ids.below(end));
    prompts[h] = l.heads[h].ids.below(prompt);
  }
  const bool raw = recipe_.position.raw_keys;
  const index_t last = l.next_position() - 1;
  for (index_t t = 0; t < tokens; ++t)
    for (index_t h = 0; h < shape_.q_heads; ++h) {
      float* to = q + (t * shape_.q_heads + h) * dim;
      for (index_t d = 0; d < dim; ++d) to[d] = queries(h, skip + t, d);
      // To where the query stands, or, for raw keys, to nowhere.
      const index_t pending = l.counters.pending, back = tokens - t;
      const index_t from = !recipe_.position.rotated_input ? 0 : pending >= back ? l.pending_positions[pending - back] : last;
      if (fold_.gate.active) control_.clear(to, from);
      if (!raw) continue;
      const index_t slot = recipe_.retrieve.keys == retrieve::KeyState::raw ? 0 : slots[h / shape_.group()] - back;
      rope_.rotate(to, slot - from);
    }
  view.shape = shape_, view.shape.softmax_scale = logit_scale();
  view.layer = layer, view.tokens = tokens, view.seen = l.counters.seen;
  view.queries = q, view.slots = slots, view.known = known, view.prompt = prompts;
  view.state = &l.index[0];
  view.rope = raw ? &rope_ : nullptr;
  return true;
}

template <Backend B, class R>
Status Cache<B, R>::attend_chosen(Context<B>& ctx, index_t layer, const prim::AttendRequest& request,
                                  const cache::ReadRotation& rotation, const AttendOutputs& measure) const {
  ReadCounts* reads = measure.reads;
  const Layer& l = layers_[layer];
  const index_t heads = shape_.kv_heads, rows = retrieval_.rows(shape_), tokens = request.queries.extent[1];
  Scratch scratch(ctx.workspace());
  retrieve::ReadView<B> view;
  if (!read_view(layer, request.queries, tokens, l.counters.prompt, l.counters.seen, scratch, view)) return Status::workspace_too_small;
  const cache::ReadKeys<Layer> keys(l, key_rotation());
  const cache::LayerRows<Layer, false> values(l);
  view.keys = &keys, view.values = &values;

  const bool held = retrieval_.holds() && l.held.valid() && !retrieval_.due(l.counters.seen, tokens);
  retrieve::ReadView<B> then = view;  // when units were chosen
  if (held) then.slots = l.held.slots.data(), then.known = l.held.slots.data() + heads;
  if (!held && retrieval_.takes_all(view)) return attend_all(ctx, layer, request, rotation, measure);

  auto* offset = scratch.take<index_t>(rows + 1);
  auto* count = scratch.take<index_t>(rows);
  auto* run_count = scratch.take<index_t>(rows);
  auto* total = scratch.take<index_t>(rows + 1);
  if (offset == nullptr || count == nullptr || run_count == nullptr || total == nullptr) return Status::workspace_too_small;
  offset[0] = total[0] = 0;
  for (index_t r = 0; r < rows; ++r)
    offset[r + 1] = offset[r] + (held ? l.held.offset[r + 1] - l.held.offset[r] : retrieval_.candidates(view, r * heads / rows).size());
  retrieve::UnitLists lists{{scratch.take<std::int32_t>(offset[rows]), offset, rows}, count};
  if (retrieval_.biases() && (lists.bias = scratch.take<float>(offset[rows])) == nullptr) return Status::workspace_too_small;
  if (retrieval_.shares() && (lists.share = scratch.take<float>(rows)) == nullptr) return Status::workspace_too_small;
  auto* sorted = scratch.take<std::int32_t>(offset[rows]);
  auto* runs = scratch.take<SlotRun>(offset[rows] + 2 * rows);
  if (lists.units.data == nullptr || sorted == nullptr || runs == nullptr) return Status::workspace_too_small;
  if (held) {
    std::copy_n(l.held.units.data(), offset[rows], lists.units.data);
    for (index_t r = 0; r < rows; ++r) count[r] = offset[r + 1] - offset[r];
  } else if (const Status s = retrieval_.choose(ctx, view, lists, reads, scratch); s != Status::ok) {
    return s;
  }
  const auto runs_of = [&](index_t r) { return runs + offset[r] + 2 * r; };
  ctx.parallel(rows, [&](index_t r, index_t) {
    const index_t h = r * heads / rows, since = view.slots[h] - then.slots[h];
    run_count[r] = retrieval_.runs(view, h, retrieval_.candidates(then, h), lists.units.row(r), count[r], since, sorted + offset[r], runs_of(r));
  });
  for (index_t r = 0; r < rows; ++r) {
    index_t n = 0;
    for (index_t i = 0; i < run_count[r]; ++i) n += runs_of(r)[i].size();
    total[r + 1] = total[r] + n;
  }
  if (reads != nullptr) count_reads(layer, rows, [&](index_t r) { return std::span<const SlotRun>(runs_of(r), static_cast<std::size_t>(run_count[r])); }, *reads);
  if (measure.pages != nullptr)
    if (const Status s = name_pages(layer, rows, [&](index_t r) { return std::span<const SlotRun>(runs_of(r), static_cast<std::size_t>(run_count[r])); },
                                    [&](const PageUse& page) { return measure.pages->bring(page); });
        s != Status::ok)
      return s;

  for (index_t h = 0; measure.runs.data != nullptr && h < shape_.q_heads; ++h) {
    const index_t r = h * rows / shape_.q_heads;
    if (run_count[r] > measure.runs.room) return Status::out_of_range;
    std::copy_n(runs_of(r), run_count[r], measure.runs.data + h * measure.runs.room);
    measure.runs.count[h] = run_count[r];
  }

  prim::AttendRequest chosen = request;
  if (request.mass.data != nullptr) {
    chosen.mass = {scratch.take<float>(total[rows]), total, rows};
    if (chosen.mass.data == nullptr) return Status::workspace_too_small;
  }
  float* bias = nullptr;
  if (retrieval_.biases()) {
    bias = scratch.take<float>(total[rows]);
    if (bias == nullptr) return Status::workspace_too_small;
    for (index_t r = 0; r < rows; ++r)
      retrieval_.spread_bias(lists.units.row(r), lists.bias + offset[r], count[r], runs_of(r), run_count[r], bias + total[r]);
  }
  prim::SlotScalars scalars;  // of all listed slots, row by row
  if (const Status s = list_scalars(l, rows, runs_of, run_count, total, bias, scratch, scalars); s != Status::ok) return s;
  const auto row_of = [&](const float* numbers, index_t r) { return numbers == nullptr ? nullptr : numbers + total[r]; };
  Context<B> rest = ctx.with_workspace(scratch.rest());
  const Status s = prim::Attend<Cpu>::run(rest, chosen, rows, [&](index_t r) {
    using Reader = cache::RunReader<typename Layer::Head>;
    Reader reader;
    reader.head = {&l.heads[r * heads / rows], rotation, measure.pages};
    reader.runs = runs_of(r), reader.count = run_count[r], reader.total = total[r + 1] - total[r], reader.tokens = tokens;
    reader.compact = retrieval_.read_at() == retrieve::Positions::compact;
    reader.own = {row_of(scalars.key_scale, r), row_of(scalars.bias, r), row_of(scalars.value_scale, r)};
    return reader;
  });
  if (s == Status::ok && retrieval_.shares()) {  // the rest of a row's output is the mean of all values
    float mean[max_head_dim];
    for (index_t r = 0; r < rows; ++r) {
      retrieval_.mean_value(view, r * heads / rows, mean);
      for (index_t h = r * shape_.q_heads / rows; h < (r + 1) * shape_.q_heads / rows; ++h)
        for (index_t t = 0; t < tokens; ++t)
          for (index_t d = 0; d < shape_.values(); ++d) {
            float& x = request.out(h, t, d);
            x = lists.share[r] * x + (1.0f - lists.share[r]) * mean[d];
          }
    }
  }
  if (s != Status::ok || request.mass.data == nullptr) return s;
  // A slot that nobody read drew no attention.
  std::fill_n(request.mass.data + request.mass.offset[0], request.mass.size(), 0.0f);
  for (index_t r = 0; r < rows; ++r) {
    const float* from = chosen.mass.row(r);
    float* to = request.mass.row(r * heads / rows);
    for (index_t i = 0; i < run_count[r]; ++i)
      for (index_t slot = runs_of(r)[i].first; slot < runs_of(r)[i].last; ++slot) to[slot] += *from++;
  }
  return Status::ok;
}

/// The scalars of listed slots, where a head has any, and what the choice adds to their logits.
template <Backend B, class R>
template <class RunsOf>
Status Cache<B, R>::list_scalars(const Layer& l, index_t rows, RunsOf&& runs_of, const index_t* run_count, const index_t* total, float* bias,
                                 Scratch& scratch, prim::SlotScalars& out) const {
  out.bias = bias;
  const auto each = [&](const float* prim::SlotScalars::*member, auto&& put) {
    for (index_t r = 0; r < rows; ++r) {
      const float* have = cache::HeadReader<typename Layer::Head>{&l.heads[r * shape_.kv_heads / rows], {}}.scalars().*member;
      for (index_t i = 0, at = total[r]; have != nullptr && i < run_count[r]; ++i)
        for (index_t slot = runs_of(r)[i].first; slot < runs_of(r)[i].last; ++slot) put(at++, have[slot]);
    }
  };
  const auto gather = [&](const float* prim::SlotScalars::*member, float neutral) {
    bool any = false;
    for (index_t h = 0; h < shape_.kv_heads; ++h)
      any = any || cache::HeadReader<typename Layer::Head>{&l.heads[h], {}}.scalars().*member != nullptr;
    if (!any) return true;
    float* list = const_cast<float*>(out.*member);
    if (list == nullptr) {
      list = scratch.take<float>(total[rows]);
      if (list == nullptr) return false;
      std::fill_n(list, total[rows], neutral);
    }
    each(member, [&](index_t at, float x) { list[at] = neutral == 0.0f ? list[at] + x : x; });
    out.*member = list;
    return true;
  };
  const bool fits = gather(&prim::SlotScalars::key_scale, 1.0f) && gather(&prim::SlotScalars::bias, 0.0f) &&
                    gather(&prim::SlotScalars::value_scale, 1.0f);
  return fits ? Status::ok : Status::workspace_too_small;
}

template <Backend B, class R>
Status Cache<B, R>::attend_all(Context<B>& ctx, index_t layer, const prim::AttendRequest& request,
                               const cache::ReadRotation& rotation, const AttendOutputs& measure, const prim::AttentionSums& counted) const {
  const Layer& l = layers_[layer];
  ReadCounts* reads = measure.reads;
  for (index_t h = 0; measure.runs.data != nullptr && h < shape_.q_heads; ++h) {
    const index_t n = l.heads[h / shape_.group()].slots();
    if (n > 0 && measure.runs.room < 1) return Status::out_of_range;
    if (n > 0) measure.runs.data[h * measure.runs.room] = {0, static_cast<std::int32_t>(n)};
    measure.runs.count[h] = n > 0 ? 1 : 0;
  }
  if (reads != nullptr)
    for (index_t h = 0; h < shape_.kv_heads; ++h) {
      const auto& head = l.heads[h];
      reads->slots_read += head.slots(), reads->slots_touched += head.slots();
      reads->slot_bytes += head.keys.slot_bytes(0, head.slots()) + head.values.slot_bytes(0, head.slots());
    }
  if (measure.pages != nullptr) {
    SlotRun whole{};
    const auto all = [&](index_t h) {
      whole.last = static_cast<std::int32_t>(l.heads[h].slots());
      return std::span<const SlotRun>(&whole, whole.last > 0 ? 1 : 0);
    };
    const Status s = name_pages(layer, shape_.kv_heads, all, [&](const PageUse& page) { return measure.pages->bring(page); });
    if (s != Status::ok) return s;
  }
  const auto reader = [&](index_t h) {
    const index_t next = h + ctx.workers();  // what this worker is likely to read then
    return cache::HeadReader<typename Layer::Head>{&l.heads[h], rotation, measure.pages, next < shape_.kv_heads ? &l.heads[next] : nullptr};
  };
  return prim::Attend<Cpu>::run(ctx, request, shape_.kv_heads, reader, counted);
}

template <Backend B, class R>
template <class Runs>
void Cache<B, R>::count_reads(index_t layer, index_t rows, Runs&& runs, ReadCounts& reads) const {
  const auto& heads = layers_[layer].heads;
  const auto bytes = [&](index_t h, const SlotRun& run) {
    return heads[h].keys.slot_bytes(run.first, run.last) + heads[h].values.slot_bytes(run.first, run.last);
  };
  cache::count_reads(shape_.kv_heads, rows, runs, [&](index_t h) { return heads[h].slots(); }, bytes, reads);
}

/// Scratch of what a prompt teaches.
template <Backend B, class R>
std::size_t Cache<B, R>::fit_bytes(index_t slots, index_t workers) const {
  if constexpr (may_retrieve)
    if (retrieval_.found_floats(shape_, slots) > 0)
      return Scratch::align + static_cast<std::size_t>(workers) * (retrieval_.fit_bytes(shape_, slots) + Scratch::align);
  return 0;
}

/// At the end of the first prompt that has something for a head, before the index is made. After `reserve_index`: cannot fail.
template <Backend B, class R>
void Cache<B, R>::learn_prompt(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries) {
  if constexpr (may_retrieve) {
    Layer& l = layers_[layer];
    const cache::ReadKeys<Layer> keys(l, key_rotation());
    const cache::LayerRows<Layer, false> values(l);
    index_t most = 0;
    for (index_t h = 0; h < shape_.kv_heads; ++h) most = std::max(most, l.heads[h].slots());
    if (retrieval_.found_floats(shape_, most) == 0) return;
    const std::size_t one = retrieval_.fit_bytes(shape_, most) + Scratch::align;
    Scratch all(ctx.workspace());
    std::byte* base = all.take<std::byte>(static_cast<index_t>(one) * ctx.workers());
    ctx.parallel(shape_.kv_heads, [&](index_t h, index_t worker) {
      if (!l.index[h].found.empty()) return;
      const retrieve::HeadRows<B> rows{&shape_, {layer, h}, l.heads[h].slots(), &keys, &values};
      retrieve::PromptQueries q{queries, key_rotation(), nullptr, rows.slots};
      if (recipe_.position.rotated_input) q.positions = l.pending_positions.data() + l.counters.pending - queries.extent[1];
      retrieval_.fit(rows, q, l.index[h], Scratch({base + static_cast<std::size_t>(worker) * one, one}));
      l.heads[h].changed(0);
    });
    for (auto& i : l.index) i.found.fit();  // a head may have learned less than there was room for, or nothing
  }
}

/// Room for the index of what a layer holds now, for a choice of units, and where `learns` for what a prompt teaches.
template <Backend B, class R>
Status Cache<B, R>::reserve_index(index_t layer, bool learns) {
  if constexpr (may_retrieve) {
    Layer& l = layers_[layer];
    if (!retrieval_.active()) return Status::ok;
    index_t most = 0;
    for (index_t h = 0; h < shape_.kv_heads; ++h) {
      most = std::max(most, l.heads[h].slots());
      if (auto& found = l.index[h].found; learns && found.empty())
        if (const Status s = found.reserve(retrieval_.found_floats(shape_, l.heads[h].slots()), true); s != Status::ok) return s;
      if (const Status s = l.index[h].drawn.reserve(l.heads[h].slots() * plan_.drawn); s != Status::ok) return s;
      if (const Status s = retrieval_.reserve(shape_, l.heads[h].slots(), l.index[h]); s != Status::ok) return s;
    }
    if (retrieval_.holds()) return l.held.units.reserve(retrieval_.rows(shape_) * retrieval_.most_units(most));
  }
  return Status::ok;
}

/// Brings the index up to all slots but the newest `pending`. Cannot fail after `reserve_index`, nor when slots have left.
template <Backend B, class R>
void Cache<B, R>::refresh_index(const Context<B>& ctx, index_t layer, index_t pending) {
  if constexpr (may_retrieve) {
    if (!retrieval_.active()) return;
    Layer& l = layers_[layer];
    const cache::ReadKeys<Layer> keys(l, key_rotation());
    const cache::LayerRows<Layer, false> values(l);
    ctx.parallel(shape_.kv_heads, [&](index_t h, index_t) {
      const index_t slots = l.heads[h].slots() - pending;
      auto& head = l.heads[h];
      if (head.same < l.index[h].covered || l.index[h].covered != slots)
        retrieval_.refresh(retrieve::HeadRows<B>{&shape_, {layer, h}, slots, &keys, &values}, std::min(head.same, slots), l.index[h]);
      head.same = head.slots();
    });
  }
}

template <Backend B, class R>
Status Cache<B, R>::rebuild_index() {
  if constexpr (!may_retrieve) return Status::ok;
  for (index_t layer = 0; layer < layers_.size(); ++layer) {
    if (const Status s = reserve_index(layer, false); s != Status::ok) return s;
    for (auto& h : layers_[layer].heads) h.changed(0);
    refresh_index(Context<B>{}, layer, layers_[layer].counters.pending);
  }
  return Status::ok;
}

/// After a step has changed slots, with the index up to date: chooses the units that later calls go on reading, or
/// lets go what slots that left have made wrong. Scratch was checked before the step.
template <Backend B, class R>
void Cache<B, R>::hold_units(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries, Phase phase, bool evicted) {
  if constexpr (may_retrieve) {
    if (!retrieval_.active() || !retrieval_.holds()) return;
    Layer& l = layers_[layer];
    const bool prompt = phase == Phase::prefill_chunk || phase == Phase::prefill_end;
    const index_t arrived = l.counters.pending, rows = queries.extent[1];
    const bool chooses = phase != Phase::turn && rows > 0 && !retrieval_.reads_all(layer) &&
                         (prompt ? phase == Phase::prefill_end && retrieval_.at_prompt_end()
                                 : arrived <= retrieval_.longest_call() && (retrieval_.due(l.counters.seen, arrived) || !l.held.valid() || evicted));
    if (evicted || prompt || chooses) l.held.drop();
    if (!chooses) return;
    Scratch scratch(ctx.workspace());
    retrieve::ReadView<B> view;
    const index_t heads = shape_.kv_heads, all = retrieval_.rows(shape_);
    // What a call of `attend` would have chosen among: the tokens of this step are no answer to themselves, unless they are a prompt.
    if (!read_view(layer, queries, prompt ? 1 : std::min(rows, retrieval_.longest_call()), prompt ? l.counters.seen : l.counters.prompt,
                   prompt ? l.counters.seen : l.counters.seen - arrived, scratch, view))
      return;
    const cache::ReadKeys<Layer> keys(l, key_rotation());
    const cache::LayerRows<Layer, false> values(l);
    view.keys = &keys, view.values = &values;
    auto* offset = scratch.take<index_t>(all + 1);
    auto* count = scratch.take<index_t>(all);
    if (offset == nullptr || count == nullptr) return;
    offset[0] = 0;
    for (index_t r = 0; r < all; ++r) offset[r + 1] = offset[r] + retrieval_.candidates(view, r * heads / all).size();
    retrieve::UnitLists lists{{scratch.take<std::int32_t>(offset[all]), offset, all}, count, nullptr};
    if (lists.units.data == nullptr || retrieval_.choose(ctx, view, lists, nullptr, scratch) != Status::ok) return;
    l.held.units.shrink(0);
    for (index_t r = 0; r < all; ++r) {
      l.held.offset[r] = l.held.units.size();
      for (index_t i = 0; i < count[r]; ++i) l.held.units.append_reserved(lists.units.row(r)[i]);
    }
    l.held.offset[all] = l.held.units.size();
    for (index_t h = 0; h < heads; ++h) l.held.slots[h] = view.slots[h], l.held.slots[heads + h] = view.known[h];
    l.held.made = l.counters.seen;
  }
}

}  // namespace kvcondense
