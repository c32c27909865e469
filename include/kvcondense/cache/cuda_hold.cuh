#pragma once

#include <algorithm>

#include <kvcondense/cache/cuda_retrieval.cuh>

namespace kvcondense::cache {

template <class Pipeline>
template <class Layer>
Status CudaRetrieval<Pipeline>::prepare_choice(Context<Cuda>& ctx, index_t layer, const Layer& l, const CacheShape& shape, const CudaKept& kept, bool listed) {
  index_t most = 0;
  for (index_t h = 0; h < shape.kv_heads; ++h) {
    const CudaHeld::Half& next = held_[layer].next();
    next.slots[h] = kept.size(h), most = std::max(most, kept.size(h));
    if (!listed) continue;
    next.known[h] = kept.of(h).below(l.slots(h) - l.counters.pending);
    next.prompt[h] = kept.of(h).below(index_[layer].prompt()[static_cast<std::size_t>(h)]);
  }
  return held_[layer].reserve(ctx, pipeline_.rows(shape) * pipeline_.most_units(most));
}

template <class Pipeline>
bool CudaRetrieval<Pipeline>::may_ask(index_t layer, index_t arrived, index_t queries, Phase phase) const {
  const bool fits = phase == Phase::prefill_end ? pipeline_.at_prompt_end() : phase == Phase::decode && arrived <= pipeline_.longest_call();
  return holds() && fits && queries > 0 && !pipeline_.reads_all(layer);
}

template <class Pipeline>
bool CudaRetrieval<Pipeline>::asks(index_t layer, index_t seen, index_t arrived, index_t queries, Phase phase, bool left) {
  if (!holds()) return false;
  CudaHeld& held = held_[layer];
  const bool prompt = phase == Phase::prefill_chunk || phase == Phase::prefill_end;
  const bool chooses = may_ask(layer, arrived, queries, phase) && (prompt || pipeline_.due(seen, arrived) || !held.valid() || left);
  if (prompt || chooses || left) held.drop();
  return chooses;
}

template <class Pipeline>
template <class Layer>
Status CudaRetrieval<Pipeline>::hold(Context<Cuda>& ctx, index_t layer, const Layer& l, const CacheShape& shape, TensorView<const float, 3> queries, const QueryTurn& turn,
                                     bool prompt, Scratch scratch) {
  CudaHeld& held = held_[layer];
  const index_t heads = shape.kv_heads, n = queries.extent[1];
  const CudaHeld::Half& next = held.next();
  for (index_t h = 0; h < heads; ++h) {
    if (prompt) next.known[h] = next.prompt[h] = next.slots[h];
    next.known[h] = std::min(next.known[h], index_[layer].covered(h));  // none before an index has learned
  }
  retrieve::ReadView<Cuda> view;
  view.shape = shape, view.layer = layer, view.tokens = prompt ? 1 : n, view.seen = l.counters.seen;
  view.slots = next.slots, view.known = next.known, view.prompt = next.prompt;
  const CudaRows stored = rows_of(l);
  view.keys = &stored.keys, view.values = &stored.values;
  CudaCandidates among;
  if (!among.make(pipeline_, view, scratch)) return Status::workspace_too_small;
  const index_t rows = pipeline_.rows(shape);
  next.offset[0] = 0;
  for (index_t h = 0; h < heads; ++h) next.first[h] = next.base[h] = among.first[h], next.last[h] = among.last[h];
  for (index_t r = 0; r < rows; ++r) next.offset[r + 1] = next.offset[r] + among.size(r * heads / rows);
  queries.data += (n - view.tokens) * queries.stride[1], queries.extent[1] = view.tokens;
  QueryTurn newest = turn;
  if (!turn.positions.empty()) newest.positions = turn.positions.last(static_cast<std::size_t>(view.tokens));
  const CudaListed of_list{false, false, raw_};
  TensorView<float, 3> meeting{};
  if (!of_list.take(shape, view.tokens, scratch, meeting)) return Status::workspace_too_small;
  if (const Status s = CudaListed::meet(ctx, pipeline_.query, newest, meeting, queries); s != Status::ok) return s;
  const Status s = choose(ctx, pipeline_, view, queries, watching_.told(index_[layer].planes(pipeline_, shape, layer), layer), among, held.next_lists(), nullptr, scratch);
  if (s == Status::ok) held.turn(l.counters.seen);
  return s;
}

template <class Pipeline>
template <class Layer>
bool CudaRetrieval<Pipeline>::settle_held(index_t layer, const Layer& l, const CacheShape& shape) {
  return !holds() || held_[layer].settle([&](index_t h) { return l.slots(h); }, [&](const CudaHeld::Half& h, index_t head) {
    retrieve::ReadView<Cuda> view;
    view.shape = shape, view.layer = layer, view.seen = l.counters.seen, view.slots = h.slots, view.known = h.known, view.prompt = index_[layer].prompt().data();
    return pipeline_.candidates(view, head);
  });
}

}  // namespace kvcondense::cache
