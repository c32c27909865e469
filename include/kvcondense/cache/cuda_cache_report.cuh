#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include <kvcondense/cache/cuda_cache.cuh>

namespace kvcondense {

template <class R>
Status Cache<Cuda, R>::tokens(Context<Cuda>& ctx, index_t layer, index_t head, std::span<std::int32_t> out) const {
  if (layer < 0 || layer >= shape().layers || head < 0 || head >= shape().kv_heads) return Status::out_of_range;
  const Layer& l = layers_[layer];
  if (l.torn) return Status::device_error;
  const index_t n = l.slots(head), stepped = n - l.counters.pending;
  if (static_cast<index_t>(out.size()) != n) return Status::shape_mismatch;
  if (stepped > 0) {
    const cudaError_t e = cudaMemcpyAsync(out.data(), l.ids.view().row(head), static_cast<std::size_t>(stepped) * sizeof(std::int32_t),
                                          cudaMemcpyDeviceToHost, ctx.stream());
    if (const Status s = cuda::settled(e); s != Status::ok) return s;
  }
  for (index_t i = stepped; i < n; ++i) out[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(l.counters.seen - n + i);
  return ctx.wait();
}

template <class R>
Status Cache<Cuda, R>::read(Context<Cuda>& ctx, index_t layer, index_t head, index_t first, TensorView<float, 2> keys, TensorView<float, 2> values) const {
  if (layer < 0 || layer >= shape().layers || head < 0 || head >= shape().kv_heads) return Status::out_of_range;
  const Layer& l = layers_[layer];
  if (l.torn) return Status::device_error;
  const index_t n = keys.extent[0];
  if (values.extent[0] != n || keys.extent[1] != shape().head_dim || values.extent[1] != shape().values() || keys.stride[1] != 1 || values.stride[1] != 1)
    return Status::shape_mismatch;
  if (first < 0 || n < 0 || first + n > l.slots(head)) return Status::out_of_range;
  const Status s = prim::HeadSlots::rows(ctx, l.keys.rows(l.device_slots(), l.longest()), head, first, keys);
  return s == Status::ok ? prim::HeadSlots::rows(ctx, l.values.rows(l.device_slots(), l.longest()), head, first, values) : s;
}

template <class R>
Status Cache<Cuda, R>::counted(Context<Cuda>& ctx, std::span<index_t, 2> out) const {
  const Status s = counts_.download(ctx, out);
  return s == Status::ok ? ctx.wait() : s;
}

template <class R>
Status Cache<Cuda, R>::rebuild_index(Context<Cuda>& ctx) {
  Status s = Status::ok;
  if constexpr (retrieves)
    for (index_t i = 0; i < layers_.size() && s == Status::ok; ++i) s = retrieval_.remake(ctx, i, layers_[i], shape(), [](index_t) { return index_t{0}; });
  return s;
}

template <class R>
Expected<Report> Cache<Cuda, R>::report(Context<Cuda>& ctx) const {
  Report r;
  r.kernel = r.key_kernel = r.value_kernel = "cuda";
  index_t counts[2] = {};
  if (const Status s = counted(ctx, counts); s != Status::ok) return s;
  r.repaired_numbers = counts[0], r.nan_scores = counts[1];
  r.fixed_bytes = layers_.bytes() + rotation_.bytes() + steering_.size() + static_cast<std::size_t>(counts_.size()) * sizeof(index_t);
  if constexpr (retrieves) {
    r.fixed_bytes += retrieval_.fixed_bytes();
    for (index_t i = 0; i < layers_.size(); ++i) r.index_bytes += retrieval_.index_bytes(i);
  }
  for (const auto& l : layers_) {
    r.tokens = std::max(r.tokens, l.counters.seen);
    r.slots += l.total(), r.fixed_bytes += l.window.bytes(), r.nan_scores += l.counters.nan_scores;
    for (index_t h = 0; h < l.done.size(); ++h) r.repaired_numbers += l.counts(h).repaired, r.coded_again += l.counts(h).coded_again;
    r.merged_slots += l.counters.merged_slots + l.folded_since();
    r.evictions += l.counters.evictions, r.evicted_slots += l.counters.evicted_slots;
    r.budget_asked += l.counters.budget_asked, r.budget_met += l.counters.budget_met;
    for (const int exact : {0, 2}) r.exact_bytes += l.keys.page_bytes(exact) + l.values.page_bytes(exact);
    r.coded_bytes += l.keys.page_bytes(1) + l.values.page_bytes(1), r.side_bytes += l.side_bytes();
    r.dead_bytes += l.keys.dead_bytes() + l.values.dead_bytes();
    r.dense_bytes += static_cast<std::size_t>(l.counters.seen * shape().kv_heads * (shape().head_dim + shape().values())) * 2;
  }
  if constexpr (may_share || may_pair) r.fixed_bytes += sharing_.bytes(), report_shared(&Layer::keys, r), report_shared(&Layer::values, r);
  return r;
}

}  // namespace kvcondense
