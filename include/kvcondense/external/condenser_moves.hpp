#pragma once

#include <kvcondense/external/condenser_impl.hpp>

namespace kvcondense::external {

template <class R>
Status Condenser<R>::plan_folds(Context<Cpu>& ctx, Layer& l, const StepView<Cpu>& view, const BorrowedLayer& rows, evict::LaneViews lanes,
                                Scratch scratch) {
  const index_t heads = shape_.kv_heads, total = view.total();
  index_t kept = 0;
  for (index_t h = 0; h < heads; ++h) kept += l.count[h];
  if (kept == total && !merger_.fires(view)) return Status::ok;
  auto* folded = scratch.take<index_t>(heads);
  if (folded == nullptr) return Status::workspace_too_small;
  const auto ragged = [&](auto* data) { return RaggedView<std::remove_pointer_t<decltype(data)>>{data, view.offset, heads}; };
  // What other sequences read too is no target.
  for (index_t h = 0; h < heads; ++h) l.targets[h] = {0, rows.shared_slots(view.slots(h)), view.slots(h)};
  merge::Scene<Cpu> scene;
  scene.view = &view, scene.targets = l.targets.data(), scene.tokens = ragged(static_cast<const std::int32_t*>(l.next.ids.data()));
  scene.state = dense_view(l.next.state.data(), heads, fold_.state);
  float* x = l.numbers.data();
  scene.links = {ragged(l.to.data()), ragged(x), ragged(x + total), ragged(x + 2 * total), fold_.fan};
  const evict::KeepSet keep{ragged(l.kept.data()), l.count.data(), nullptr};
  if (const Status s = merger_.decide(ctx, scene, lanes, keep, ragged(l.turn.data()), folded, scratch); s != Status::ok) return s;
  for (index_t h = 0; h < heads; ++h) l.folds = l.folds || folded[h] > 0;
  l.query.shrink(0);
  if (fold_.mass != merge::Mass::exact) return Status::ok;
  const TensorView<const float, 3>& q = view.inputs.queries;
  if (q.data == nullptr)  // before a turn there is no query: what folds weighs what it weighed
    return prim::MergeWeights<Cpu>::add_sizes(ctx, l.targets.data(), scene.links, lanes[static_cast<std::size_t>(fold_.bias)]);
  for (index_t h = 0; h < shape_.q_heads; ++h)
    for (index_t d = 0; d < shape_.head_dim; ++d) l.query.append_reserved(q(h, q.extent[1] - 1, d));
  return Status::ok;
}

/// Whether what folds is written where only this sequence reads.
template <class R>
Status Condenser<R>::check_writes(const Layer& l, const BorrowedLayer& rows) const {
  if (!l.folds || fold_.target == merge::Target::none || rows.owners.empty()) return Status::ok;
  for (index_t h = 0; h < shape_.kv_heads; ++h)
    if (rows.shared_slots(l.now.slots(h)) > l.targets[h].begin) return Status::invalid_argument;
  return Status::ok;
}

template <class R>
void Condenser<R>::fold(Context<Cpu>& ctx, Layer& l, const BorrowedLayer& rows, Scratch scratch) {
  if (!l.folds || fold_.target == merge::Target::none) return;
  const index_t heads = shape_.kv_heads, total = l.now.total();
  const auto ragged = [&](auto* data) { return RaggedView<std::remove_pointer_t<decltype(data)>>{data, l.now.offset.data(), heads}; };
  float* x = l.numbers.data();
  prim::CombineRequest request;
  request.links = {ragged(l.to.data()), ragged(x), ragged(x + total), ragged(x + 2 * total), fold_.fan};
  request.targets = l.targets.data(), request.order = ragged(scratch.take<std::int32_t>(total)), request.split = fold_.split;
  request.keys = fold_.target == merge::Target::keys_and_values;
  if (fold_.place >= 0) request.angles = &angles_, request.turn = ragged(static_cast<const std::int32_t*>(l.turn.data()));
  if (!l.query.empty()) {
    request.bias = ragged(l.now.lane(pipeline_.lanes() + fold_.bias));
    request.queries = dense_view(static_cast<const float*>(l.query.data()), shape_.q_heads, 1, shape_.head_dim);
    request.softmax_scale = shape_.softmax_scale;
  }
  (void)prim::SegmentedCombine<Cpu>::run(ctx, request, [&](index_t h) { return detail::BorrowedFold{&rows, h}; });
}

/// Numbers of slots follow their slots; nothing waits any more.
template <class R>
void Condenser<R>::done(Layer& l) {
  Slots& s = l.now;
  const index_t heads = shape_.kv_heads, before = s.total();
  index_t after = 0;
  for (index_t h = 0; h < heads; ++h) after += l.count[h];
  for (index_t lane = -1; lane < lanes(); ++lane) {
    index_t to = lane < 0 ? 0 : lane * after;
    for (index_t h = 0; h < heads; ++h)
      for (index_t i = 0; i < l.count[h]; ++i, ++to) {
        const index_t from = s.offset[h] + l.kept[s.offset[h] + i];
        if (lane < 0) s.ids[to] = s.ids[from];
        else s.lanes[to] = s.lanes[lane * before + from];
      }
  }
  for (index_t h = 0, at = 0; h < heads; ++h) s.offset[h] = at, at += l.count[h];
  s.offset[heads] = after;
  s.ids.shrink(after), s.lanes.shrink(after * lanes());
  l.waits = l.leaves = l.folds = false;
}

template <class R>
Status Condenser<R>::compact(Context<Cpu>& ctx, index_t layer, const BorrowedLayer& rows, std::span<const std::int32_t> to,
                             std::span<const SlotBytes> numbers) {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  Layer& l = layers_[layer];
  if (!l.waits || !l.settled) return Status::order_violation;
  if (!l.leaves) return Status::ok;
  if (to.empty()) to = rows.table;
  Scratch scratch(ctx.workspace());
  if (const Status s = MoveRows::validate(rows, shape_, kept(layer), longest(layer), to, numbers, scratch); s != Status::ok) return s;
  if (const Status s = check_writes(l, rows); s != Status::ok) return s;
  if (l.folds && scratch.left() < Scratch::bytes_for<std::int32_t>(l.now.total())) return Status::workspace_too_small;
  fold(ctx, l, rows, scratch);
  MoveRows::run(ctx, rows, kept(layer), to, numbers);
  done(l);
  return Status::ok;
}

template <class R>
Status Condenser<R>::relist(Context<Cpu>& ctx, index_t layer, const BorrowedLayer& rows) {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  Layer& l = layers_[layer];
  if (!l.waits || !l.settled) return Status::order_violation;
  if (!l.leaves) return Status::ok;
  if (!kept(layer).alike()) return Status::incompatible;
  Scratch scratch(ctx.workspace());
  if (const Status s = check(rows, shape_, longest(layer), scratch); s != Status::ok) return s;
  if (const Status s = check_writes(l, rows); s != Status::ok) return s;
  if (l.folds && scratch.left() < Scratch::bytes_for<std::int32_t>(l.now.total())) return Status::workspace_too_small;
  fold(ctx, l, rows, scratch);
  done(l);
  return Status::ok;
}

template <class R>
Status Condenser<R>::accept(index_t layer) {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  Layer& l = layers_[layer];
  if (!l.waits || !l.settled) return Status::order_violation;
  if (!kept(layer).alike()) return Status::incompatible;
  if (l.folds) return Status::not_supported;
  if (l.leaves) done(l);
  return Status::ok;
}

template <class R>
Status Condenser<R>::decline(index_t layer) {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  Layer& l = layers_[layer];
  if (!l.waits || !l.settled) return Status::order_violation;
  if (l.folds) return Status::not_supported;
  for (index_t h = 0; h < shape_.kv_heads; ++h) {
    l.count[h] = l.now.slots(h);
    std::iota(l.kept.data() + l.now.offset[h], l.kept.data() + l.now.offset[h + 1], 0);
  }
  l.waits = l.leaves = false;
  return Status::ok;
}

template <class R>
Status Condenser<R>::attend(Context<Cpu>& ctx, index_t layer, const BorrowedLayer& rows, index_t tokens, TensorView<const float, 3> queries,
                            TensorView<float, 3> out, TensorView<float, 2> lse) const {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  const Layer& l = layers_[layer];
  const index_t n = queries.extent[1], heads = shape_.kv_heads;
  if (queries.extent[0] != shape_.q_heads || queries.extent[2] != shape_.head_dim || out.extent[0] != shape_.q_heads || out.extent[1] != n ||
      out.extent[2] != shape_.values() || (lse.data != nullptr && (lse.extent[0] != shape_.q_heads || lse.extent[1] != n)))
    return Status::shape_mismatch;
  if (tokens < 0 || n > std::max<index_t>(1, tokens)) return Status::order_violation;
  if (tokens > detail::most_position) return Status::out_of_range;
  Scratch scratch(ctx.workspace());
  if (const Status s = check(rows, shape_, longest(layer) + tokens, scratch); s != Status::ok) return s;
  auto* offset = scratch.take<index_t>(heads + 1);
  if (offset == nullptr) return Status::workspace_too_small;
  offset[0] = 0;
  for (index_t h = 0; h < heads; ++h) offset[h + 1] = offset[h] + l.now.slots(h) + tokens;
  // What a merge stage keeps of slots, with neutral numbers for the new ones.
  const auto with_new = [&](index_t lane, float neutral) -> float* {
    float* x = scratch.take<float>(offset[heads]);
    for (index_t h = 0; h < heads && x != nullptr; ++h) {
      std::copy_n(l.now.lane(pipeline_.lanes() + lane) + l.now.offset[h], l.now.slots(h), x + offset[h]);
      std::fill_n(x + offset[h] + l.now.slots(h), tokens, neutral);
    }
    return x;
  };
  RaggedView<const float> bias, scale;
  if (fold_.bias >= 0) bias = {with_new(fold_.bias, 0.0f), offset, heads};
  if (fold_.value_scale >= 0) scale = {with_new(fold_.value_scale, 1.0f), offset, heads};
  auto* counts = scratch.take<index_t>(heads);
  if (counts == nullptr || (fold_.bias >= 0 && bias.data == nullptr) || (fold_.value_scale >= 0 && scale.data == nullptr))
    return Status::workspace_too_small;
  for (index_t h = 0; h < heads; ++h) counts[h] = offset[h + 1] - offset[h];
  const LayerSlots<BorrowedLayer> slots(rows, counts, {}, bias, scale);
  prim::AttendRequest request{queries, out, lse};
  request.softmax_scale = shape_.softmax_scale;
  Context<Cpu> rest = ctx.with_workspace(scratch.rest());
  return prim::Attend<Cpu>::run(rest, request, heads, [&](index_t h) { return slots.head(h); });
}

template <class R>
Status Condenser<R>::truncate(index_t tokens) {
  if (tokens < 0) return Status::out_of_range;
  for (index_t i = 0; i < shape_.layers; ++i) {
    if (tokens > layers_[i].seen) return Status::out_of_range;
    if (leaves(i) && layers_[i].settled) return Status::order_violation;
  }
  for (Layer& l : layers_) {
    for (index_t h = 0; h < shape_.kv_heads; ++h) {
      const std::int32_t* ids = l.now.ids.data() + l.now.offset[h];
      l.count[h] = std::lower_bound(ids, ids + l.now.slots(h), tokens) - ids;
      std::iota(l.kept.data() + l.now.offset[h], l.kept.data() + l.now.offset[h] + l.count[h], 0);
    }
    if (l.now.total() > 0) done(l);
    l.settled = true;
    l.next_position = std::max<index_t>(0, l.next_position - (l.seen - tokens));
    l.seen = tokens, l.prompt = std::min(l.prompt, tokens);
    if (tokens < l.ended) l.ended = 0;  // the prompt goes on
    l.window.truncate(tokens), l.prompt_window.truncate(tokens);
    if constexpr (can_fold)
      for (index_t h = 0; h < shape_.kv_heads && fold_.state > 0; ++h) merger_.truncate(tokens, l.now.state.data() + h * fold_.state);
  }
  return Status::ok;
}

template <class R>
std::size_t Condenser<R>::bytes() const {
  std::size_t n = layers_.bytes();
  for (const Layer& l : layers_)
    n += l.now.bytes() + l.next.bytes() + l.window.bytes() + l.prompt_window.bytes() + l.kept.bytes() + l.to.bytes() + l.turn.bytes() + l.count.bytes() +
         l.numbers.bytes() + l.query.bytes() + l.targets.bytes();
  return n;
}

template <class R>
Status Condenser<R>::copy(const Slots& from, Slots& to) {
  Status s = to.offset.copy_from(from.offset);
  if (s == Status::ok) s = to.ids.copy_from(from.ids);
  if (s == Status::ok) s = to.lanes.copy_from(from.lanes);
  return s == Status::ok ? to.state.copy_from(from.state) : s;
}

template <class R>
Expected<Condenser<R>> Condenser<R>::fork() const {
  for (index_t i = 0; i < shape_.layers; ++i)
    if (leaves(i) || !layers_[i].settled) return Status::order_violation;
  auto made = make(shape_, recipe_, options_, *memory_);
  if (!made) return made.status();
  for (index_t i = 0; i < shape_.layers; ++i) {
    const Layer& l = layers_[i];
    Layer& o = made->layers_[i];
    Status s = copy(l.now, o.now);
    if (s == Status::ok) s = o.kept.copy_from(l.kept);
    if (s == Status::ok) s = l.window.fork(o.window);
    const index_t rows = l.prompt_window.most();
    if (s == Status::ok && rows > 0) s = cache::QueryWindow::make(rows, shape_, *memory_, o.prompt_window);
    if (s == Status::ok && rows > 0) s = l.prompt_window.fork(o.prompt_window);
    if (s != Status::ok) return s;
    o.seen = l.seen, o.stepped = l.stepped, o.prompt = l.prompt, o.next_position = l.next_position, o.ended = l.ended;
  }
  return made;
}

}  // namespace kvcondense::external
