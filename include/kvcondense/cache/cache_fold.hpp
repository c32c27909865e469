#pragma once

#include <bit>
#include <cmath>

#include <kvcondense/backend/cpu/segmented_combine.hpp>
#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/folding.hpp>

namespace kvcondense {

template <Backend B, class R>
std::size_t Cache<B, R>::fold_bytes(index_t total) const {
  if constexpr (can_merge) {
    if (!merging_) return 0;
    const index_t heads = shape_.kv_heads;
    return (fold_.gate.active ? 8 : 7) * static_cast<std::size_t>(Scratch::bytes_for<float>(total)) + Scratch::bytes_for<prim::SlotRange>(heads) + Scratch::bytes_for<index_t>(heads) +
           Scratch::bytes_for<float>(heads * fold_.state) + merger_.workspace_bytes(shape_, total);
  } else {
    return 0;
  }
}

/// Positions of the tokens that came with this step.
template <Backend B, class R>
void Cache<B, R>::mark_places(const Layer& l, RaggedView<float> places) const {
  const index_t pending = l.counters.pending;
  for (index_t h = 0; h < shape_.kv_heads; ++h)
    for (index_t i = 0; i < pending; ++i)
      places.row(h)[l.heads[h].slots() - pending + i] = std::bit_cast<float>(static_cast<std::int32_t>(l.pending_positions[i]));
}

template <Backend B, class R>
Status Cache<B, R>::fold(Context<B>& ctx, const StepView<B>& view, evict::LaneViews lanes, const evict::KeepSet& keep,
                         cache::Folding& out, Scratch& scratch) const {
  const Layer& l = layers_[view.layer];
  const index_t heads = shape_.kv_heads, total = view.total();
  index_t kept = 0;
  for (index_t h = 0; h < heads; ++h) kept += keep.count[h];
  if (kept == total && !merger_.fires(view)) return Status::ok;

  const auto ints = [&] { return RaggedView<std::int32_t>{scratch.take<std::int32_t>(total), view.offset, heads}; };
  const auto floats = [&] { return RaggedView<float>{scratch.take<float>(total), view.offset, heads}; };
  const RaggedView<std::int32_t> tokens = ints();
  out.links = {ints(), floats(), floats(), floats(), fold_.fan};
  out.turn = ints(), out.order = ints();
  out.targets = scratch.take<prim::SlotRange>(heads);
  out.folded = scratch.take<index_t>(heads);
  float* state = scratch.take<float>(heads * fold_.state);
  if (state == nullptr || out.folded == nullptr || out.targets == nullptr || out.order.data == nullptr)
    return Status::workspace_too_small;
  out.state = dense_view(state, heads, fold_.state);
  for (index_t h = 0; h < heads; ++h) {
    const auto& head = l.heads[h];
    head.ids.copy_to(0, head.slots(), tokens.row(h));
    std::copy_n(head.state.data(), fold_.state, state + h * fold_.state);
    // What is coded, or will not be written in one of the columns, is no target.
    const auto& v = head.values;
    out.targets[h] = {v.sinks().live(), v.slots() - v.window().live(), v.slots()};
    if (fold_.target == merge::Target::keys_and_values) {
      out.targets[h].prefix = std::min(out.targets[h].prefix, head.keys.sinks().live());
      out.targets[h].begin = std::max(out.targets[h].begin, head.keys.slots() - head.keys.window().live());
    }
    const index_t exact = out.targets[h].prefix + out.targets[h].end - out.targets[h].begin;
    if (!fold_.gate.active && exact < std::min(head.slots(), cache::least_targets)) out.targets[h] = {0, head.slots(), head.slots()};
  }
  merge::Scene<B> scene;
  if (fold_.gate.active) {
    const RaggedView<std::int32_t> heirs = ints();
    if (heirs.data == nullptr) return Status::workspace_too_small;
    for (index_t h = 0; h < heads; ++h)
      for (index_t j = l.heads[h].slots() - 1; j >= 0; --j)
        heirs.row(h)[j] = l.heads[h].passed_on(j) ? heirs.row(h)[j + 1] : static_cast<std::int32_t>(j);
    scene.heirs = heirs;
  }
  scene.view = &view, scene.targets = out.targets, scene.tokens = tokens, scene.links = out.links, scene.state = out.state;
  if (const Status s = merger_.decide(ctx, scene, lanes, keep, out.turn, out.folded, scratch); s != Status::ok) return s;
  out.decided = true;
  for (index_t h = 0; h < heads; ++h) out.any = out.any || out.folded[h] > 0;
  if (fold_.mass != merge::Mass::exact) return Status::ok;
  out.bias = lanes[static_cast<std::size_t>(fold_.bias)];
  if (view.phase != Phase::turn && view.inputs.queries.data != nullptr) return Status::ok;
  // Before a turn there is no query, and one that is passed was not looked at: what folds weighs what it weighed.
  const Status s = prim::MergeWeights<B>::add_sizes(ctx, out.targets, out.links, out.bias);
  out.bias = {};
  return s;
}

template <Backend B, class R>
Status Cache<B, R>::reserve_fold(Layer& l, const cache::Folding& f) {
  if (!f.any || fold_.target == merge::Target::none) return Status::ok;
  Status s = Status::ok;
  const auto own = [&](auto& column, index_t slot) {
    if (s == Status::ok) s = cache::with_exact(column, slot, [](auto& part, index_t at) { return part.reserve_write(at); });
  };
  for (index_t h = 0; h < shape_.kv_heads; ++h) {
    index_t last = -1;
    for (index_t j = 0; j < l.heads[h].slots(); ++j) {
      if (!f.links.folds(h, j) || (f.links.fan == 1 && f.links.to.row(h)[j] == last)) continue;
      last = f.links.to.row(h)[j];
      f.links.for_targets(h, j, f.targets, [&](index_t t) {
        if (fold_.target == merge::Target::keys_and_values) own(l.heads[h].keys, t);
        own(l.heads[h].values, t);
      });
    }
  }
  return s;
}

template <Backend B, class R>
void Cache<B, R>::commit_fold(Context<B>& ctx, Layer& l, const cache::Folding& f, TensorView<const float, 3> queries) {
  if (!f.decided) return;
  for (index_t h = 0; h < shape_.kv_heads; ++h) {
    std::copy_n(f.state.data + h * fold_.state, fold_.state, l.heads[h].state.data());
    l.counters.merged_slots += f.folded[h];
  }
  if (!f.any || fold_.target == merge::Target::none) return;
  prim::CombineRequest request;
  request.links = f.links, request.targets = f.targets, request.order = f.order, request.split = fold_.split;
  request.keys = fold_.target == merge::Target::keys_and_values;
  if (fold_.place >= 0 && !recipe_.position.raw_keys) request.angles = &fold_angles_, request.turn = f.turn;
  if (f.bias.data != nullptr) request.bias = f.bias, request.queries = queries, request.softmax_scale = shape_.softmax_scale;
  (void)prim::SegmentedCombine<Cpu>::run(ctx, request, [&](index_t h) {
    return cache::FoldRows<typename Layer::Head>{&l.heads[h], shape_.dtype};
  });
}

}  // namespace kvcondense
