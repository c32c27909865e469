#pragma once

#include <algorithm>
#include <cassert>
#include <string_view>

#include <kvcondense/backend/cpu/attend.hpp>
#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/dense_row.hpp>
#include <kvcondense/cache/head_reader.hpp>

namespace kvcondense {

template <Backend B, class R>
auto Cache<B, R>::make_plan() const -> Plan {
  Plan p;
  p.exact = {shape_.dtype};
  p.sinks = storage_of(recipe_).sinks;
  p.head_dim = shape_.head_dim;
  p.value_dim = shape_.values();
  p.page_slots = shape_.page_slots;
  const index_t others = pipeline_.lanes() + (graded_ ? saliency_.lanes() : 0);
  p.lanes = others + fold_.lanes;
  if (fold_.bias >= 0) p.bias = others + fold_.bias;
  if (fold_.value_scale >= 0) p.value_scale = others + fold_.value_scale;
  p.state = fold_.state;
  p.joins = fold_.gate.active;
  if (queries().rows == AttentionNeed::Rows::last) p.query_rows = queries().count;
  p.summary = pipeline_.residual == evict::Residual::mean;
  if constexpr (may_retrieve) {
    p.indexed = retrieval_.active();
    p.learns = retrieval_.found_floats(shape_, 1) > 0;
    p.drawn = retrieval_.watch().numbers(shape_);
    p.query_rows = std::max(p.query_rows, retrieval_.watch().history);
    if (retrieval_.active() && retrieval_.holds()) p.held_rows = retrieval_.rows(shape_);
  }
  return p;
}

template <Backend B, class R>
Expected<Cache<B, R>> Cache<B, R>::make(const CacheShape& shape, const R& recipe, MemoryResource<Cpu>& memory) {
  if (const Status s = cache::check_recipe(shape, recipe); s != Status::ok) return s;
  const Storage storage = storage_of(recipe);
  Cache c;
  c.shape_ = shape;
  if (shape.softmax_scale == 0.0f)
    c.shape_.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  c.recipe_ = recipe;
  c.pipeline_ = recipe.evict.pipeline();
  c.saliency_ = saliency_of(storage);
  c.graded_ = has_saliency(storage);
  c.retrieval_ = recipe.retrieve.pipeline();
  if constexpr (may_retrieve)
    if (!c.retrieval_.composes()) return Status::incompatible;
  c.memory_ = &memory;
  if constexpr (merge::Merges<Merge>) {
    c.merger_ = merger_of(recipe.merge);
    c.fold_ = c.merger_.traits();
    c.merging_ = c.fold_.active;
    const bool turns = c.fold_.gate.active && (recipe.position.raw_keys ? recipe.position.rotated_input : c.fold_.gate.rotated);
    if (c.fold_.place >= 0 || turns) {
      const auto angles = prim::rope_angles(c.turning_rope(), shape.head_dim);
      if (!angles) return angles.status();
      c.fold_angles_ = *angles;
    }
    c.control_ = prim::ControlComponent::of(c.fold_.gate, turns ? &c.fold_angles_ : nullptr, shape.head_dim);
    c.control_.turns = recipe.position.raw_keys;
  }
  if (c.pipeline_.lanes() + (c.graded_ ? c.saliency_.lanes() : 0) + c.fold_.lanes > cache::max_lanes) return Status::not_supported;
  const AttentionNeed grades = c.graded_ ? c.saliency_.attention() : AttentionNeed{};
  if (const Status s = cache::check_policies(c.pipeline_, c.fold_, grades, recipe.position.raw_keys, c.capabilities().changes_length); s != Status::ok) return s;
  // Rows of two layers are one row: what maps or weighs those of one layer by what it finds there has none to look at.
  if (c.fold_.across.active && std::string_view(word_of(recipe.lowrank)) != NoLowRank::about.word) return Status::incompatible;
  c.groups_ = c.fold_.across.active ? c.fold_.across.groups(shape) : row_groups(recipe.lowrank, shape);
  if (c.groups_.most() > 1 && c.graded_) return Status::incompatible;
  c.plan_ = c.make_plan();
  if (recipe.position.raw_keys) {
    auto table = prim::RopeTable::make(recipe.position.rope, shape.head_dim, memory);
    if (!table) return table.status();
    c.rope_ = std::move(*table);
  }
  const auto codecs = [&](HeadIndex at) {
    return typename Layer::Codecs{key_codec_of(storage, shape, at), value_codec_of(storage, shape, at),
                                  key_flush_of(storage, shape, at), value_flush_of(storage, shape, at)};
  };
  const bool own = differs_per_head(storage);
  const auto all = codecs({});
  Status failed = Status::ok;
  const Status made = c.layers_.fill(memory, shape.layers, [&](index_t i) {
    Layer l;
    if (failed == Status::ok)
      failed = Layer::make(c.plan_, [&](index_t h) { return c.paired(own ? codecs({i, h}) : all, {i, h}); }, shape, memory, l);
    return l;
  });
  if (made != Status::ok) return made;
  if (failed != Status::ok) return failed;
  c.finish_plan();
  if (c.fold_.across.active && (c.found_ || c.plan_.codec_queries)) return Status::incompatible;
  return c;
}

/// Codecs of a layer that shares rows store exactly what no quant stage codes.
template <Backend B, class R>
auto Cache<B, R>::paired(typename Layer::Codecs codecs, HeadIndex at) const -> typename Layer::Codecs {
  if (layer_group(at.layer).count * head_group(at.head).count > 1) codecs.together = sums() ? Together::sums : Together::directions;
  const bool directions = codecs.together == Together::directions;
  if (directions && codecs.key_flush.block == 0) codecs.key = cache::as_exact(codecs.key, shape_.dtype);
  if (directions && codecs.value_flush.block == 0) codecs.value = cache::as_exact(codecs.value, shape_.dtype);
  return codecs;
}

template <Backend B, class R>
void Cache<B, R>::finish_plan() {
  Plan& p = plan_;
  for (const Layer& l : layers_)
    for (const auto& h : l.heads) {
      p.query_width = std::max(p.query_width, cache::HeadReader<typename Layer::Head>{&h, {.reach = reach()}}.query_width());
      p.value_width = std::max(p.value_width, h.values.width());
      p.commit_floats = std::max(p.commit_floats, h.scratch());
      for (const auto& [slots, dim] : {std::pair(h.keys.coded().page_slots(), h.keys.dim()), std::pair(h.values.coded().page_slots(), h.values.dim())})
        if (groups_.most() > 1) p.across_floats = std::max(p.across_floats, across_floats(slots, dim));
      p.lossy = p.lossy || fold_.across.active || h.keys.flush_rule().block > 0 || h.values.flush_rule().block > 0;
      p.codec_queries = p.codec_queries || h.keys.needs_queries() || h.values.needs_queries();
      found_ = found_ || h.keys.map().state_floats() > 0 || h.values.map().state_floats() > 0;
    }
}

template <Backend B, class R>
Capabilities Cache<B, R>::capabilities() const {
  Capabilities c;
  if constexpr (requires { recipe_.evict.changes_length(); }) c.changes_length = recipe_.evict.changes_length();
  else c.changes_length = !std::same_as<Evict, evict::KeepAll>;
  c.changes_length = c.changes_length || fold_.shrinks;
  c.needs = inputs(0);
  c.probes = pipeline_.probes();
  c.raw_keys = recipe_.position.raw_keys;
  c.rotated_input = recipe_.position.rotated_input;
  c.lossy_slots = plan_.lossy;
  if constexpr (may_retrieve) {
    c.reads_part = retrieval_.active();
    c.choosing_call = c.reads_part ? retrieval_.longest_call() : 0;
  }
  c.wants = recipe_traits(recipe_);
  c.joins_tokens = fold_.gate.active;
  c.turns_keys = c.raw_keys || fold_.place >= 0 || (fold_.gate.active && fold_.gate.rotated) || evict::reads_rotated_keys(pipeline_.source);
  c.found_maps = found_;
  c.rollback_exact = !c.changes_length && !c.joins_tokens && !c.lossy_slots;
  c.prefix_exact = !c.changes_length && !c.lossy_slots;
  return c;
}

template <Backend B, class R>
std::size_t Cache<B, R>::workspace_bytes(index_t slots, index_t tokens, index_t workers) const {
  const index_t total = slots * shape_.kv_heads;
  const bool mass = attention().rows != AttentionNeed::Rows::none;
  const std::size_t attend = prim::Attend<Cpu>::workspace_bytes(workers, shape_.kv_heads, shape_.group() * tokens, slots, plan_.query_width,
                                                                plan_.value_width, true);
  std::size_t step = Scratch::align + Scratch::bytes_for<std::int32_t>(total) +
                     2 * Scratch::bytes_for<index_t>(shape_.kv_heads) + Scratch::bytes_for<prim::Ends>(shape_.kv_heads) +
                     static_cast<std::size_t>(plan_.lanes) * Scratch::bytes_for<float>(total);
  step += std::max(pipeline_.workspace_bytes(shape_, total),
                   static_cast<std::size_t>(workers) * Scratch::bytes_for<float>(plan_.commit_floats));
  if (graded_)
    step += Scratch::bytes_for<float>(total) + Scratch::bytes_for<evict::Protected>(shape_.kv_heads) +
            saliency_.workspace_bytes(shape_, total);
  step += fold_bytes(total) + Scratch::bytes_for<float>(total * plan_.drawn);
  if (queries().rows != AttentionNeed::Rows::none || pipeline_.probes() || plan_.drawn > 0)
    step += prim::AttendColumns<Cpu>::workspace_bytes(workers, shape_, std::max(tokens, plan_.query_rows), plan_.query_width, slots) + Scratch::align;
  step = std::max(step, across_bytes(slots, workers));
  if (evict::model_share(pipeline_.allocate).keep > 0.0) step += Scratch::bytes_for<index_t>(shape_.layers * shape_.kv_heads) + Scratch::align;
  const std::size_t forward_mass = mass ? Scratch::align + std::max(Scratch::bytes_for<float>(total), Scratch::bytes_for<float*>(shape_.kv_heads)) : 0;
  const std::size_t choice = choice_bytes(slots, tokens);
  return forward_mass + std::max({attend + choice, step, choice, fit_bytes(slots, workers)});
}

template <Backend B, class R>
template <class T>
Status Cache<B, R>::check_append(index_t layer, const TensorView<const T, 3>& keys, const TensorView<const T, 3>& values,
                                 std::span<const index_t> positions) const {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  const index_t n = keys.extent[1];
  if (keys.extent[0] != shape_.kv_heads || values.extent[0] != shape_.kv_heads || values.extent[1] != n ||
      keys.extent[2] != shape_.head_dim || values.extent[2] != shape_.values())
    return Status::shape_mismatch;
  if (!positions.empty() && static_cast<index_t>(positions.size()) != n) return Status::shape_mismatch;
  for (const index_t p : positions)
    if (p < 0 || p > cache::max_position) return Status::invalid_argument;
  const Layer& l = layers_[layer];
  if (l.counted > 0) return Status::order_violation;
  if (l.counters.seen + n > cache::max_position) return Status::out_of_range;
  if (positions.empty() && n > 0 && l.next_position() + n - 1 > cache::max_position) return Status::out_of_range;
  float row[max_head_dim];
  for (const auto* rows : {&keys, &values})
    for (index_t h = 0; h < rows->extent[0]; ++h)
      for (index_t t = 0; t < n; ++t)
        if (!prim::cpu::coding_ops().within(cache::row_of(*rows, h, t, row), rows->extent[2], largest_taken(shape_.dtype))) return Status::invalid_argument;
  return Status::ok;
}

template <Backend B, class R>
template <class T>
Status Cache<B, R>::append_rows(Context<B>& ctx, index_t layer, TensorView<const T, 3> keys,
                                TensorView<const T, 3> values, std::span<const index_t> positions,
                                TensorView<const float, 3> queries) {
  if (const Status s = check_append(layer, keys, values, positions); s != Status::ok) return s;
  const index_t n = keys.extent[1];
  if (n == 0) return Status::ok;
  Layer& l = layers_[layer];
  if (fold_.gate.active)
    if (const Status s = check_join(l, n, queries, positions); s != Status::ok) return s;
  index_t most = 0;
  for (index_t h = 0; h < shape_.kv_heads; ++h) most = std::max(most, l.heads[h].slots());
  if (const Status s = reserve_rotation(most + n); s != Status::ok) return s;
  if (const Status s = l.reserve(plan_, n); s != Status::ok) return s;

  const index_t sinks = l.sinks_due(plan_, n), next = l.next_position();
  const bool unrotate = recipe_.position.raw_keys && recipe_.position.rotated_input;
  ctx.parallel(shape_.kv_heads, [&](index_t h, index_t) {
    if (fold_.gate.active) return join_rows(l, h, keys, values, queries, positions, sinks);
    constexpr index_t tile = prim::cpu::tile_slots;
    float rows[tile * max_head_dim];
    for (index_t t = 0; t < n; t += tile) {
      const index_t m = std::min(tile, n - t), s = std::clamp<index_t>(sinks - t, 0, m);
      for (index_t i = 0; i < m; ++i) {
        float* k = rows + i * shape_.head_dim;
        cache::copy_row(keys, h, t + i, k);
        if (unrotate)
          rope_.rotate(k, -(positions.empty() ? next + t + i
                                              : positions[static_cast<std::size_t>(t + i)]));
      }
      l.heads[h].keys.append({rows, m, shape_.head_dim}, s);
      for (index_t i = 0; i < m; ++i) cache::copy_row(values, h, t + i, rows + i * shape_.values());
      l.heads[h].values.append({rows, m, shape_.values()}, s);
    }
  });
  l.count(n, positions);
  return Status::ok;
}

template <Backend B, class R>
Status Cache<B, R>::attend(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out,
                           const AttendOutputs& measure) const {
  return attend_to(ctx, layer, queries, out, measure, {});
}

template <Backend B, class R>
Status Cache<B, R>::attend_to(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out,
                              const AttendOutputs& measure, const prim::AttentionSums& counted) const {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  const Layer& l = layers_[layer];
  const index_t n = queries.extent[1];
  if (queries.extent[0] != shape_.q_heads || out.extent[0] != shape_.q_heads || out.extent[1] != n ||
      queries.extent[2] != shape_.head_dim || out.extent[2] != shape_.values())
    return Status::shape_mismatch;
  if (measure.lse.data != nullptr && (measure.lse.extent[0] != shape_.q_heads || measure.lse.extent[1] != n))
    return Status::shape_mismatch;
  if (measure.mass.data != nullptr && !rows_fit(measure.mass, l.offset.data(), shape_.kv_heads)) return Status::shape_mismatch;
  // Causal rows exist only among tokens that no step has touched; one query may always look at all.
  if (n > std::max<index_t>(1, l.counters.pending)) return Status::order_violation;

  prim::AttendRequest request{queries, out, measure.lse, measure.mass, mass_rows(n), shape_.softmax_scale};
  cache::ReadRotation rotation;
  index_t last_position = l.next_position() - 1;
  rotation.control = control();
  if (recipe_.position.rotated_input)
    rotation.query_positions = l.counters.pending >= n ? l.pending_positions.data() + l.counters.pending - n : &last_position;
  if (recipe_.position.raw_keys) {
    rotation.table = &rope_, rotation.reach = reach();
    request.softmax_scale = logit_scale();
  }
  if (measure.reads != nullptr) *measure.reads = {};
  if (measure.pages != nullptr) measure.pages->begin();
  if constexpr (may_retrieve)
    if (chooses(layer, n)) return attend_chosen(ctx, layer, request, rotation, measure);
  return attend_all(ctx, layer, request, rotation, measure, counted);
}

template <Backend B, class R>
template <class K, class V>
  requires StoredNumbers<K, V>
Status Cache<B, R>::forward(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries,
                            TensorView<K, 3> keys, TensorView<V, 3> values, TensorView<float, 3> out,
                            std::span<const index_t> positions, Phase phase, StepInputs inputs) {
  if (const Status s = append(ctx, layer, keys, values, positions, queries); s != Status::ok) return s;
  const index_t n = queries.extent[1], added = keys.extent[1];
  inputs.queries = queries;
  // Tokens whose attention is counted cannot be taken back: only where nothing is refused any more.
  StepView<B> view = step_view(layer, phase);
  view.inputs = inputs, view.counted = mass_rows(n);
  if (counts_attention(layer, n, phase) && check_inputs(view) == Status::ok &&
      attend_counted(ctx, layer, queries, out, {}, phase) == Status::ok) {
    const Status s = run_step(ctx, layer, inputs, phase);
    assert(s == Status::ok);
    return s;
  }
  AttendOutputs measure;
  Context<B> rest = ctx;
  if (wants_mass(layer, phase)) {
    Scratch all(ctx.workspace());
    float* mass = all.take<float>(total_slots(layer));
    if (mass == nullptr) return truncate_layer(layer, added), Status::workspace_too_small;
    measure.mass = ragged(layer, mass);
    rest = ctx.with_workspace(all.rest());
  }
  Status s = attend(rest, layer, queries, out, measure);
  inputs.attention = {measure.mass, mass_rows(n)};
  if (s == Status::ok) s = run_step(rest, layer, inputs, phase);
  if (s != Status::ok) truncate_layer(layer, added);
  return s;
}

}  // namespace kvcondense

#include <kvcondense/cache/cache_across.hpp>
#include <kvcondense/cache/cache_count.hpp>
#include <kvcondense/cache/cache_fold.hpp>
#include <kvcondense/cache/cache_join.hpp>
#include <kvcondense/cache/cache_mutations.hpp>
#include <kvcondense/cache/cache_retrieve.hpp>
#include <kvcondense/cache/cache_turn.hpp>
#include <kvcondense/cache/cache_watch.hpp>
