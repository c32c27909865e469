#pragma once

#include <cstddef>

#include <kvcondense/cache/cuda_cache.cuh>

// How a cache on CUDA tells apart slots that become codes: by the scores of a quant stage's own policy, whose pipeline is that of the CPU, of which only
// what scores is run.

namespace kvcondense {

/// Scratch of `grade`, its scores among it, which `commit` reads.
template <class R>
std::size_t Cache<Cuda, R>::grade_bytes(index_t slots, index_t total, index_t tokens) const {
  return graded_ ? Scratch::align + Scratch::bytes_for<float>(total) + cache::cuda_pipeline_bytes(saliency_, shape(), slots, total, tokens) : 0;
}
template <class R>
std::size_t Cache<Cuda, R>::grade_steering_bytes() const {
  return graded_ ? Scratch::align + Scratch::bytes_for<evict::Protected>(shape().kv_heads) : 0;
}

/// Scores of all slots where they still lie. `scratch` has room of its own.
template <class R>
Status Cache<Cuda, R>::grade(Context<Cuda>& ctx, const StepView<Cuda>& view, evict::LaneViews lanes, RaggedView<float>& scores, Scratch scratch) const {
  scores = view.ragged(scratch.take<float>(view.total()));
  auto* const shield = scratch.take_steering<evict::Protected>(view.heads());
  if (scores.data == nullptr || shield == nullptr) return Status::workspace_too_small;
  saliency_.protect_ends(view, shield);
  return saliency_.rank(ctx, view, lanes, shield, scores, scratch);
}

}  // namespace kvcondense
