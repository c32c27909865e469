#pragma once

#include <algorithm>

#include <kvcondense/cache/cuda_retrieval.cuh>

namespace kvcondense::cache {

template <class Pipeline>
template <class Layer>
Status CudaRetrieval<Pipeline>::hold(Context<Cuda>& ctx, index_t layer, const Layer& l, const CacheShape& shape, TensorView<const float, 3> queries, QueryTurn turn, Phase phase,
                                     const IndexChange& change, Scratch scratch) {
  if (!holds()) return Status::ok;
  CudaHeld& held = held_[layer];
  const bool prompt = phase == Phase::prefill_chunk || phase == Phase::prefill_end;
  const index_t heads = shape.kv_heads, arrived = l.counters.pending, n = queries.extent[1];
  const bool due = prompt ? phase == Phase::prefill_end && pipeline_.at_prompt_end()
                          : arrived <= pipeline_.longest_call() && (pipeline_.due(l.counters.seen, arrived) || !held.valid());
  const bool chooses = phase != Phase::turn && n > 0 && !pipeline_.reads_all(layer) && due;
  if (prompt || chooses) held.drop();
  if (!chooses) return Status::ok;
  const CudaHeld::Half& next = held.next();
  for (index_t h = 0; h < heads; ++h) {
    next.slots[h] = l.slots(h), next.known[h] = prompt ? change.known[h] : std::max<index_t>(0, change.known[h] - arrived);
    if (prompt) change.prompt[h] = next.slots[h];
  }
  retrieve::ReadView<Cuda> view;
  view.shape = shape, view.layer = layer, view.tokens = prompt ? 1 : std::min(n, pipeline_.longest_call()), view.seen = l.counters.seen;
  view.slots = next.slots, view.known = next.known, view.prompt = change.prompt;
  const CudaRows stored = rows_of(l);
  view.keys = &stored.keys, view.values = &stored.values;
  CudaCandidates among;
  if (!among.make(pipeline_, view, scratch)) return Status::workspace_too_small;
  const index_t rows = pipeline_.rows(shape);
  next.offset[0] = 0;
  for (index_t h = 0; h < heads; ++h) next.first[h] = next.base[h] = among.first[h], next.last[h] = among.last[h];
  for (index_t r = 0; r < rows; ++r) next.offset[r + 1] = next.offset[r] + among.size(r * heads / rows);
  queries.data += (n - view.tokens) * queries.stride[1], queries.extent[1] = view.tokens;
  if (!turn.positions.empty()) turn.positions = turn.positions.last(static_cast<std::size_t>(view.tokens));
  const CudaListed of_list{false, false, raw_};
  TensorView<float, 3> meeting{};
  if (!of_list.take(shape, view.tokens, scratch, meeting)) return Status::workspace_too_small;
  if (const Status s = CudaListed::meet(ctx, pipeline_.query, turn, meeting, queries); s != Status::ok) return s;
  const Status s = choose(ctx, pipeline_, view, queries, index_[layer].planes(pipeline_, shape, layer), among, held.next_lists(), nullptr, scratch);
  if (s == Status::ok) held.turn(l.counters.seen);
  return s;
}

}  // namespace kvcondense::cache
