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

// What leaves a cache on CUDA folds into what stays. The merge pipelines are those of the CPU, their blocks written over words.

namespace kvcondense {

/// Whether the cache can do what a merge stage wants: it folds what an eviction stage lets go, exact rows as they lie, and attention reads
/// no number per slot.
template <class R>
Status Cache<Cuda, R>::check_merge() const {
  if (!fold_.active) return fold_.across.active ? Status::not_supported : Status::ok;
  if (!changes_length() && !fold_.shrinks) return Status::incompatible;  // it has nothing to do where nothing leaves
  // One call of `attend` measures one set of rows.
  const AttentionNeed evicts = pipeline_.attention(), folds = fold_.attention;
  const bool both = evicts.rows != AttentionNeed::Rows::none && folds.rows != AttentionNeed::Rows::none;
  if (both && (evicts.rows != folds.rows || (evicts.rows == AttentionNeed::Rows::last && evicts.count != folds.count))) return Status::incompatible;
  const bool exact = plan_.keys.flush.block == 0 && plan_.values.flush.block == 0;
  const bool plain = fold_.bias < 0 && fold_.value_scale < 0 && fold_.place < 0 && fold_.queries.rows == AttentionNeed::Rows::none;
  return exact && plain && !fold_.shrinks && !fold_.gate.active ? Status::ok : Status::not_supported;
}

/// Scratch of `fold`, which `commit` uses too.
template <class R>
std::size_t Cache<Cuda, R>::fold_bytes(index_t total) const {
  if constexpr (can_merge) {
    if (!fold_.active) return 0;
    return 6 * Scratch::bytes_for<float>(total) + Scratch::bytes_for<float>(shape().kv_heads * fold_.state) +
           Scratch::bytes_for<std::byte>(static_cast<index_t>(word_bytes(total))) + merger_.workspace_bytes(shape(), total);
  } else {
    return 0;
  }
}

/// Which of the slots that leave fold into which that stay. Nothing of the layer changes. `out.targets`: steering memory.
template <class R>
Status Cache<Cuda, R>::fold(Context<Cuda>& ctx, const StepView<Cuda>& view, evict::LaneViews lanes, const evict::KeepSet& keep, cache::Folding& out,
                            std::span<std::byte>& words, Scratch& scratch) {
  if constexpr (can_merge) {
    Layer& l = layers_[view.layer];
    const index_t heads = shape().kv_heads, total = view.total(), numbers = heads * fold_.state;
    const auto ints = [&] { return view.ragged(scratch.take<std::int32_t>(total)); };
    const auto floats = [&] { return view.ragged(scratch.take<float>(total)); };
    const RaggedView<std::int32_t> tokens = ints();
    out.links = {ints(), floats(), floats(), floats(), fold_.fan};
    out.order = ints();
    float* state = scratch.take<float>(numbers);
    const auto room = static_cast<index_t>(word_bytes(total));
    auto* const bytes = scratch.take<std::byte>(room);
    if (state == nullptr || bytes == nullptr || out.targets == nullptr || out.order.data == nullptr) return Status::workspace_too_small;
    words = {bytes, static_cast<std::size_t>(room)};
    out.state = dense_view(state, heads, fold_.state);
    for (index_t h = 0; h < heads; ++h) out.targets[h] = {0, 0, view.slots(h)};  // all are exact
    const auto first = static_cast<std::int32_t>(l.counters.seen - l.counters.pending);
    Status s = prim::HeadSlots::read<std::int32_t>(ctx, std::as_const(l.ids).view(), l.counters.pending, first, 1, tokens);
    if (s == Status::ok && numbers > 0) s = copy_state(ctx, state, l.state.data());
    merge::Scene<Cuda> scene;
    scene.view = &view, scene.targets = out.targets, scene.tokens = tokens, scene.links = out.links, scene.state = out.state;
    Context<Cuda> own = ctx.with_workspace(words);
    if (s == Status::ok) s = merger_.decide(own, scene, lanes, keep, {}, l.folded.data(), scratch);
    out.decided = s == Status::ok;
    return s;
  } else {
    return Status::ok;
  }
}

/// Behind `reserve_codes`: rows of the slots that fold are added to those of their targets, where all still lie as they did.
template <class R>
Status Cache<Cuda, R>::commit_fold(Context<Cuda>& ctx, Layer& l, const cache::Folding& f, std::span<std::byte> words) {
  if (!f.decided) return Status::ok;
  Status s = fold_.state > 0 ? copy_state(ctx, l.state.data(), f.state.data) : Status::ok;
  if (fold_.target == merge::Target::none) return s;
  if (s == Status::ok) s = l.keys.settle(ctx);  // pages that a fork had too were copied
  if (s == Status::ok) s = l.values.settle(ctx);
  prim::CombineRequest request;
  request.links = f.links, request.targets = f.targets, request.order = f.order, request.split = fold_.split;
  request.keys = fold_.target == merge::Target::keys_and_values;
  Context<Cuda> own = ctx.with_workspace(words);
  if (s != Status::ok) return s;
  return prim::SegmentedCombine<Cuda>::run(own, request, l.keys.rows(l.device_slots(), l.longest()), l.values.rows(l.device_slots(), l.longest()), l.total(),
                                            counts_.data());
}

template <class R>
Status Cache<Cuda, R>::copy_state(const Context<Cuda>& ctx, float* to, const float* from) const {
  const auto bytes = static_cast<std::size_t>(shape().kv_heads * fold_.state) * sizeof(float);
  return cuda::settled(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, ctx.stream()));
}

}  // namespace kvcondense
