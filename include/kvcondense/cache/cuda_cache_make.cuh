#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include <kvcondense/cache/cuda_cache.cuh>

// What a cache on CUDA is made of, or why there is none.

namespace kvcondense {

/// What all layers have in common.
template <class R>
auto Cache<Cuda, R>::plan_of(const CacheShape& shape, const Storage& q, index_t lanes) -> Plan {
  Plan p;
  p.shape = shape, p.lanes = lanes, p.sinks = q.sinks;
  if (shape.softmax_scale == 0.0f) p.shape.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const prim::ExactRows exact{shape.dtype};
  const auto column = [&](const auto& codec, const Flush& flush, index_t dim) {
    cache::CudaColumnPlan<std::remove_cvref_t<decltype(codec)>> c{exact, codec, flush, q.sinks, shape.kv_heads, dim, shape.page_slots};
    c.describe(codec);
    return c;
  };
  p.keys = column(cache::in_column<KeyCodec>(key_codec_of(q, shape), Together::alone, shape.dtype), key_flush_of(q, shape), shape.head_dim);
  p.values = column(cache::in_column<ValueCodec>(value_codec_of(q, shape), Together::alone, shape.dtype), value_flush_of(q, shape), shape.values());
  for (index_t l = 1; l < shape.layers; ++l) {  // a layer may stay exact: the plan is that of those that do not
    if (p.keys.flush.block == 0) p.keys.flush = key_flush_of(q, shape, {l, 0});
    if (p.values.flush.block == 0) p.values.flush = value_flush_of(q, shape, {l, 0});
  }
  return p;
}

template <class R>
auto Cache<Cuda, R>::make(const CacheShape& shape, const R& recipe, MemoryResource<Cuda>& memory) -> Expected<Cache> {
  if (const Status s = cache::check_recipe(shape, recipe); s != Status::ok) return s;
  const Storage storage = storage_of(recipe);
  if (!detail::cuda_serves(storage, shape)) return Status::not_supported;
  Cache c;
  c.recipe_ = recipe, c.memory_ = &memory;
  c.pipeline_ = recipe.evict.pipeline();
  c.saliency_ = saliency_of(storage), c.graded_ = has_saliency(storage);
  if constexpr (merge::Merges<Merge>) c.merger_ = merger_of(recipe.merge), c.fold_ = c.merger_.traits();
  const index_t others = c.pipeline_.lanes() + c.grade_lanes();
  c.plan_ = plan_of(shape, storage, others + c.fold_.lanes);
  c.plan_.state = c.fold_.state;
  if constexpr (can_merge) c.plan_.found = merge::state_floats(c.merger_.finder);
  if (c.fold_.bias >= 0) c.plan_.bias = others + c.fold_.bias;
  if (c.fold_.value_scale >= 0) c.plan_.value_scale = others + c.fold_.value_scale;
  if (c.queries().rows == AttentionNeed::Rows::last) c.plan_.query_rows = c.queries().count;
  c.plan_.query_rows = std::max(c.plan_.query_rows, recipe.retrieve.pipeline().watch().history);
  c.plan_.summary = c.pipeline_.residual == evict::Residual::mean;
  if (c.plan_.lanes > max_lanes) return Status::not_supported;
  const AttentionNeed grades = c.graded_ ? c.saliency_.attention() : AttentionNeed{};
  if (const Status s = cache::check_policies(c.pipeline_, c.fold_, grades, may_turn, c.changes_length()); s != Status::ok) return s;
  if (const Status s = c.make_sharing(); s != Status::ok) return s;
  if (const Status s = c.make_rotation(); s != Status::ok) return s;
  if (c.fold_.place >= 0) {
    const auto angles = prim::rope_angles(c.fold_.rope, shape.head_dim);
    if (!angles) return angles.status();
    c.fold_angles_ = *angles;
  }
  if (const Status s = c.make_joining(); s != Status::ok) return s;
  if constexpr (retrieves) {
    if (c.stands_alone()) return Status::not_supported;
    if (const Status s = c.retrieval_.make(recipe.retrieve.pipeline(), c.plan_.shape, may_turn, memory); s != Status::ok) return s;
  }
  const std::size_t each = c.steering_bytes(), all = each + c.plan_.told_bytes() + Scratch::align;
  const std::size_t layers = all * static_cast<std::size_t>(shape.layers), model = c.model_steering_bytes();
  if (const Status s = c.steering_.make(layers + model); s != Status::ok) return s;
  c.model_steering_ = c.steering_.part(layers, model);
  c.counts_ = cuda::DeviceArray<index_t>(memory);
  if (const Status s = c.counts_.resize(2); s != Status::ok) return s;
  // A cache that a file was loaded into counts before anything is appended. Layers wait for it below.
  if (const Status s = cuda::settled(cudaMemsetAsync(c.counts_.data(), 0, c.counts_.bytes().size(), nullptr)); s != Status::ok) return s;
  Status failed = Status::ok;
  const Status made = c.layers_.fill(heap_memory(), shape.layers, [&](index_t i) {
    Plan own = c.plan_;
    const HeadIndex first_head{i, 0};
    own.keys.flush = key_flush_of(storage, shape, first_head), own.values.flush = value_flush_of(storage, shape, first_head);
    const auto key_codec = [&](index_t h) { return cache::in_column<KeyCodec>(key_codec_of(storage, shape, {i, h}), c.together(i), shape.dtype); };
    const auto value_codec = [&](index_t h) { return cache::in_column<ValueCodec>(value_codec_of(storage, shape, {i, h}), c.together(i), shape.dtype); };
    // Layers may differ in how many numbers of a row they store, and in how many bytes.
    if (differs_per_head(storage) || Plan::latent.keys || Plan::latent.values || may_pair)
      own.keys.describe(key_codec(0)), own.values.describe(value_codec(0));
    for (index_t h = 1; h < (differs_per_head(storage) ? shape.kv_heads : 0); ++h)
      own.keys.describe_also(key_codec(h)), own.values.describe_also(value_codec(h));
    own.keys.store(c.together(i)), own.values.store(c.together(i));
    Layer l(own, memory);
    const std::size_t first = static_cast<std::size_t>(i) * all;
    if (failed == Status::ok) failed = l.make(c.steering_.part(first + each, all - each));
    if (failed == Status::ok && differs_per_head(storage)) {
      failed = l.keys.describe(key_codec);
      if (failed == Status::ok) failed = l.values.describe(value_codec);
    }
    l.steering = c.steering_.part(first, each);
    return l;
  });
  if (made != Status::ok) return made;
  if (failed != Status::ok) return failed;
  return c;
}

}  // namespace kvcondense
