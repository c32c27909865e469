#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cuda/count_above.cuh>
#include <kvcondense/cache/cuda_cache.cuh>
#include <kvcondense/prim/rank_bits.hpp>

namespace kvcondense {

template <class R>
Status Cache<Cuda, R>::turn(Context<Cuda>& ctx, index_t incoming) {
  if (incoming < 0) return Status::invalid_argument;
  for (const auto& l : layers_) {
    if (l.torn) return Status::device_error;
    if (l.counters.pending > 0) return Status::order_violation;
  }
  StepInputs inputs;
  inputs.incoming = incoming;
  const evict::ModelShare share = evict::model_share(pipeline_.allocate);
  Buffer<index_t> budget(heap_memory());
  if (share.keep > 0.0) {
    if (const Status s = budget.resize(layers_.size() * shape().kv_heads); s != Status::ok) return s;
    if (const Status s = share_model(ctx, share, budget.data()); s != Status::ok) {
      static_cast<void>(ctx.wait());  // what was enqueued reads memory that the next call writes
      return s;
    }
  }
  for (index_t i = 0; i < layers_.size(); ++i) {
    const index_t* own = share.keep > 0.0 ? budget.data() + i * shape().kv_heads : nullptr;
    if (const Status s = run_step(ctx, i, inputs, Phase::turn, own); s != Status::ok) return s;
  }
  return Status::ok;
}

template <class R>
Expected<Cache<Cuda, R>> Cache<Cuda, R>::fork(Context<Cuda>& ctx) {
  for (const auto& l : layers_)
    if (l.torn) return Status::device_error;
  auto copy = make(shape(), recipe_, *memory_);
  if (!copy) return copy.status();
  Status s = copy->counts_.copy_from(ctx, counts_);
  if (s == Status::ok) s = copy->rotation_.reserve(ctx, rotation_.slots());
  for (index_t i = 0; i < layers_.size() && s == Status::ok; ++i) {
    s = layers_[i].fence.wait();
    layers_[i].learn();
    if (s == Status::ok) s = layers_[i].fork(ctx, copy->layers_[i]);
    if constexpr (retrieves)
      if (s == Status::ok) s = retrieval_.fork(ctx, i, copy->retrieval_);
  }
  if (s == Status::ok) return copy;
  static_cast<void>(ctx.wait());  // what was enqueued reads and writes what goes now
  return s;
}

template <class R>
std::size_t Cache<Cuda, R>::model_steering_bytes() const {
  if (evict::model_share(pipeline_.allocate).keep <= 0.0) return 0;
  const index_t rows = shape().layers * shape().kv_heads;
  return Scratch::align + 3 * Scratch::bytes_for<index_t>(rows + 1) + Scratch::bytes_for<prim::Ends>(rows);
}

template <class R>
std::size_t Cache<Cuda, R>::model_bytes(index_t slots) const {
  if (evict::model_share(pipeline_.allocate).keep <= 0.0) return 0;
  const index_t total = slots * shape().kv_heads;
  const std::size_t ranking = static_cast<std::size_t>(plan_.lanes) * Scratch::bytes_for<float>(total) + pipeline_bytes(slots, total, 0);
  return Scratch::align + Scratch::bytes_for<float>(shape().layers * total) +
         std::max(ranking, Scratch::bytes_for<prim::RowCutoff>(shape().layers * shape().kv_heads));
}

/// The slots of all heads of all layers side by side, and how many of the best each head has. Waits for the stream twice.
template <class R>
Status Cache<Cuda, R>::share_model(Context<Cuda>& ctx, evict::ModelShare share, index_t* budget) {
  const index_t heads = shape().kv_heads, rows = layers_.size() * heads;
  Scratch scratch(ctx.workspace(), model_steering_);
  auto* offset = scratch.take_steering<index_t>(rows + 1);
  auto* none = scratch.take_steering<index_t>(rows);
  auto* count = scratch.take_steering<index_t>(rows);
  auto* shield = scratch.take_steering<prim::Ends>(rows);
  if (offset == nullptr || none == nullptr || count == nullptr || shield == nullptr) return Status::workspace_too_small;
  index_t total = 0, seen = 0, kept = 0;
  for (index_t i = 0; i < layers_.size(); ++i) {
    seen += layers_[i].counters.seen * heads;
    for (index_t h = 0; h < heads; ++h) offset[i * heads + h] = total, none[i * heads + h] = 0, total += layers_[i].slots(h);
  }
  offset[rows] = total;
  auto* numbers = scratch.take<float>(total);
  if (numbers == nullptr) return Status::workspace_too_small;
  for (index_t i = 0; i < layers_.size(); ++i) {
    const Layer& l = layers_[i];
    Scratch s = scratch;
    StepView<Cuda> view = step_view(i, Phase::turn);
    const SlotRows<Cuda> keys = l.keys.rows(l.device_slots(), l.longest()), values = l.values.rows(l.device_slots(), l.longest());
    view.keys = &keys, view.values = &values;
    RaggedView<float> lanes[max_lanes];
    for (index_t n = 0; n < plan_.lanes; ++n) {
      lanes[n] = view.ragged(s.take<float>(l.total()));
      if (lanes[n].data == nullptr) return Status::workspace_too_small;
      if (const Status r = prim::HeadSlots::read<float>(ctx, l.lanes[n].view(), 0, 0.0f, 0.0f, lanes[n]); r != Status::ok) return r;
    }
    pipeline_.protect_ends(view, shield + i * heads);
    const Status r = pipeline_.rank(ctx, view, {lanes, static_cast<std::size_t>(plan_.lanes)}, shield + i * heads, view.ragged(numbers + offset[i * heads]), s);
    if (r != Status::ok) return r;
  }
  const RaggedView<const float> scores{numbers, offset, rows};
  Status s = prim::CountAbove<Cuda>::run(ctx, scores, shield, std::numeric_limits<float>::infinity(), count);
  if (s == Status::ok) s = ctx.wait();
  if (s != Status::ok) return s;
  index_t sure = 0;  // beyond the share
  for (index_t r = 0; r < rows; ++r) budget[r] = shield[r].size() + count[r], kept += budget[r], sure += count[r];
  const auto all = static_cast<index_t>(std::floor(share.keep * static_cast<double>(seen) + 1e-6));
  const index_t places = std::clamp<index_t>(all - kept, 0, total - kept);
  if (places == 0) return Status::ok;
  s = prim::TopKCounts<Cuda>::run(ctx, scores, shield, none, places + sure, count, scratch, share.strict);  // the sure ones are best
  if (s == Status::ok) s = ctx.wait();
  for (index_t r = 0; r < rows && s == Status::ok; ++r) budget[r] = shield[r].size() + count[r];
  return s;
}

}  // namespace kvcondense
