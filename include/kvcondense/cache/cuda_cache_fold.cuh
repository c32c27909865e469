#pragma once

#include <algorithm>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/merge_filter.cuh>
#include <kvcondense/backend/cuda/merge_sets.cuh>
#include <kvcondense/backend/cuda/merge_weights.cuh>
#include <kvcondense/backend/cuda/row_norm.cuh>
#include <kvcondense/backend/cuda/row_similarity.cuh>
#include <kvcondense/backend/cuda/segmented_combine.cuh>
#include <kvcondense/cache/cuda_cache.cuh>
#include <kvcondense/cache/folding.hpp>

// What leaves a cache on CUDA folds into what stays. The merge pipelines are those of the CPU, their blocks written over words.

namespace kvcondense {

/// Of what the host writes and a fold reads: slots that may be written, those that stay, what a finder keeps, and what it writes.
template <class R>
std::size_t Cache<Cuda, R>::fold_steering_bytes() const {
  if (!fold_.active) return 0;
  const index_t heads = shape().kv_heads;
  std::size_t bytes = Scratch::bytes_for<prim::SlotRange>(heads) + Scratch::bytes_for<index_t>(heads) + Scratch::bytes_for<float>(heads * plan_.found) + 2 * Scratch::align;
  if constexpr (can_merge) bytes += merger_.steering_bytes(shape());
  return bytes;
}

/// Whether a stage seeks sets among the slots that stay in this step.
template <class R>
bool Cache<Cuda, R>::finds_sets(const StepView<Cuda>& view) const {
  if constexpr (can_merge) return fold_.active && merger_.fires(view, dense_view(layers_[view.layer].found.data(), shape().kv_heads, plan_.found));
  else return false;
}

/// Scratch of `fold`, which `commit` uses too.
template <class R>
std::size_t Cache<Cuda, R>::fold_bytes(index_t total) const {
  if constexpr (can_merge) {
    if (!fold_.active) return 0;
    return (plan_.joins ? 8 : 7) * Scratch::bytes_for<float>(total) + Scratch::bytes_for<float>(shape().kv_heads * fold_.state) +
           Scratch::bytes_for<std::byte>(static_cast<index_t>(word_bytes(total))) + merger_.workspace_bytes(shape(), total);
  } else {
    return 0;
  }
}

/// The slots of a head that may be written, behind `learn`: what is coded in one of the columns that are written is none.
template <class R>
prim::SlotRange Cache<Cuda, R>::targets(const Layer& l, index_t head) const {
  const index_t slots = l.slots(head);
  const auto &keys = l.keys.most(head), &values = l.values.most(head);
  prim::SlotRange r{values.first, values.first + values.coded, slots};
  if (fold_.target == merge::Target::keys_and_values) r.prefix = std::min(r.prefix, keys.first), r.begin = std::max(r.begin, keys.first + keys.coded);
  return !plan_.joins && r.prefix + r.end - r.begin < std::min(slots, cache::least_targets) ? prim::SlotRange{0, slots, slots} : r;
}

/// Positions of the tokens that came with this step.
template <class R>
Status Cache<Cuda, R>::mark_places(Context<Cuda>& ctx, const Layer& l, RaggedView<float> places) const {
  return prim::HeadSlots::write_newest(ctx, l.pending_positions.span(), places);
}

/// Which of the slots that leave fold into which that stay. Nothing of the layer changes. `scratch` has steering memory of its own.
template <class R>
Status Cache<Cuda, R>::fold(Context<Cuda>& ctx, const StepView<Cuda>& view, evict::LaneViews lanes, const evict::KeepSet& keep,
                            const cache::CudaKept& kept, cache::Folding& out, std::span<std::byte>& words, Scratch scratch) {
  if constexpr (can_merge) {
    Layer& l = layers_[view.layer];
    const index_t heads = shape().kv_heads, total = view.total(), numbers = heads * fold_.state;
    const auto ints = [&] { return view.ragged(scratch.take<std::int32_t>(total)); };
    const auto floats = [&] { return view.ragged(scratch.take<float>(total)); };
    const RaggedView<std::int32_t> tokens = ints();
    out.targets = scratch.take_steering<prim::SlotRange>(heads);
    auto* const stay = scratch.take_steering<index_t>(heads);
    out.links = {ints(), floats(), floats(), floats(), fold_.fan};
    out.turn = ints(), out.order = ints();
    float* state = scratch.take<float>(numbers);
    const auto room = static_cast<index_t>(word_bytes(total));
    auto* const bytes = scratch.take<std::byte>(room);
    if (state == nullptr || bytes == nullptr || stay == nullptr || out.order.data == nullptr) return Status::workspace_too_small;
    words = {bytes, static_cast<std::size_t>(room)};
    out.state = dense_view(state, heads, fold_.state);
    for (index_t h = 0; h < heads; ++h) out.targets[h] = targets(l, h), stay[h] = kept.size(h);
    const auto first = static_cast<std::int32_t>(l.counters.seen - l.counters.pending);
    Status s = prim::HeadSlots::read<std::int32_t>(ctx, std::as_const(l.ids).view(), l.counters.pending, first, 1, tokens);
    if (s == Status::ok && numbers > 0) s = copy_state(ctx, state, l.state.data());
    merge::Scene<Cuda> scene;
    scene.view = &view, scene.targets = out.targets, scene.stay = stay, scene.tokens = tokens, scene.links = out.links, scene.state = out.state;
    out.found = dense_view(scratch.take_steering<float>(heads * plan_.found), heads, plan_.found);
    if (out.found.data == nullptr) return Status::workspace_too_small;
    std::copy(l.found.begin(), l.found.end(), out.found.data);
    scene.found = out.found;
    if (may_join && plan_.joins) {
      const RaggedView<std::int32_t> heirs = ints();
      if (heirs.data == nullptr) return Status::workspace_too_small;
      if (s == Status::ok) s = prim::OpenSlots::heirs(ctx, l.open.passed(l.counters.pending), heirs);
      scene.heirs = heirs;
    }
    Context<Cuda> own = ctx.with_workspace(words);
    if (s == Status::ok) s = merger_.decide(own, scene, lanes, keep, out.turn, l.folded.data(), scratch);
    out.decided = s == Status::ok;
    if (s != Status::ok || fold_.mass != merge::Mass::exact) return s;
    out.bias = lanes[static_cast<std::size_t>(fold_.bias)];
    if (view.phase != Phase::turn && view.inputs.queries.data != nullptr) return s;
    // Before a turn there is no query, and one that is passed was not looked at: what folds weighs what it weighed.
    s = prim::MergeWeights<Cuda>::add_sizes(own, out.targets, out.links, out.bias, total);
    out.bias = {};
    return s;
  } else {
    return Status::ok;
  }
}

/// Behind `fold` where a stage finds sets among slots that stay: how many are left only the device knows, so it is waited for.
template <class R>
Status Cache<Cuda, R>::count_left(Context<Cuda>& ctx, const StepView<Cuda>& view, const evict::KeepSet& keep, cache::CudaKept& kept, bool& leaves) const {
  if (const Status s = ctx.wait(); s != Status::ok) return s;
  leaves = false;
  for (index_t h = 0; h < view.heads(); ++h) {
    kept.set_size(h, keep.count[h]), keep.ends[h] = {-1, 0};
    leaves = leaves || kept.size(h) < view.slots(h);
  }
  return leaves && wants_lists(view) ? kept.tell(ctx, keep) : Status::ok;
}

/// Behind `reserve_codes`: rows of the slots that fold are added to those of their targets, where all still lie as they did.
template <class R>
Status Cache<Cuda, R>::commit_fold(Context<Cuda>& ctx, Layer& l, const cache::Folding& f, TensorView<const float, 3> queries, std::span<std::byte> words) {
  if (!f.decided) return Status::ok;
  Status s = fold_.state > 0 ? copy_state(ctx, l.state.data(), f.state.data) : Status::ok;
  std::copy_n(f.found.data, l.found.size(), l.found.data());
  if (fold_.target == merge::Target::none) return s;
  if (s == Status::ok) s = l.keys.settle(ctx);  // pages that a fork had too were copied
  if (s == Status::ok) s = l.values.settle(ctx);
  prim::CombineRequest request;
  request.links = f.links, request.targets = f.targets, request.order = f.order, request.split = fold_.split;
  request.keys = fold_.target == merge::Target::keys_and_values;
  if (fold_.place >= 0 && !may_turn) request.angles = &fold_angles_, request.turn = f.turn;
  if (f.bias.data != nullptr) request.bias = f.bias, request.queries = queries, request.softmax_scale = shape().softmax_scale;
  Context<Cuda> own = ctx.with_workspace(words);
  if (s != Status::ok) return s;
  return prim::SegmentedCombine<Cuda>::run(own, request, l.keys.rows(l.device_slots(), l.longest()), l.values.rows(l.device_slots(), l.longest()), l.total(),
                                            counts_.data());
}

/// Behind `reserve_codes`: what leaves and folds nowhere lives on in the summary slots.
template <class R>
Status Cache<Cuda, R>::take_means(Context<Cuda>& ctx, Layer& l, const evict::KeepSet& keep, const cache::Folding& f) {
  if (const Status s = l.settle(ctx); s != Status::ok) return s;  // pages that a fork had too were copied
  const RaggedView<const std::int32_t> to{f.decided ? f.links.to.data : nullptr, l.device_offset(), shape().kv_heads};
  return prim::SlotSummary::take(ctx, l.keys.rows(l.device_slots(), l.longest()), l.values.rows(l.device_slots(), l.longest()), {keep.slots, keep.count}, to,
                                 l.summary.numbers(), counts_.data());
}

template <class R>
Status Cache<Cuda, R>::copy_state(const Context<Cuda>& ctx, float* to, const float* from) const {
  const auto bytes = static_cast<std::size_t>(shape().kv_heads * fold_.state) * sizeof(float);
  return cuda::settled(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, ctx.stream()));
}

}  // namespace kvcondense
