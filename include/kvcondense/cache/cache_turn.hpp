#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/cache/cache.hpp>
#include <kvcondense/prim/rank_bits.hpp>

namespace kvcondense {

template <Backend B, class R>
Status Cache<B, R>::turn(Context<B>& ctx, index_t incoming) {
  if (incoming < 0) return Status::invalid_argument;
  for (const Layer& l : layers_)
    if (l.counters.pending > 0) return Status::order_violation;
  const evict::ModelShare share = evict::model_share(pipeline_.allocate);
  Scratch all(ctx.workspace());
  index_t* budget = nullptr;
  if (share.keep > 0.0) {
    budget = all.take<index_t>(shape_.layers * shape_.kv_heads);
    if (budget == nullptr) return Status::workspace_too_small;
    if (const Status s = share_model(ctx, share, budget, all); s != Status::ok) return s;
  }
  Context<B> rest = ctx.with_workspace(all.rest());
  for (index_t layer = 0; layer < shape_.layers; ++layer) {
    const index_t* own = budget == nullptr ? nullptr : budget + layer * shape_.kv_heads;
    if (const Status s = run_step(rest, layer, {.incoming = incoming}, Phase::turn, own); s != Status::ok) return s;
  }
  return Status::ok;
}

/// Counts from the best slot of all layers down until the share is full; scores are made anew for every pass, since
/// those of all layers together would be another cache.
template <Backend B, class R>
Status Cache<B, R>::share_model(Context<B>& ctx, evict::ModelShare share, index_t* budget, Scratch scratch) {
  const index_t heads = shape_.kv_heads;
  Status failed = Status::ok;
  const auto each_head = [&](auto&& use) {  // (place in `budget`, candidates' scores, how many, how many are protected)
    for (index_t layer = 0; layer < shape_.layers && failed == Status::ok; ++layer) {
      const Layer& l = layers_[layer];
      Scratch s = scratch;
      StepView<B> view = step_view(layer, Phase::turn);
      const cache::LayerRows<Layer, true> keys(l);
      const cache::LayerRows<Layer, false> values(l);
      view.keys = &keys, view.values = &values;
      RaggedView<float> lanes[cache::max_lanes];
      const index_t lane_count = pipeline_.lanes();
      if (!l.copy_lanes(lane_count, s, lanes)) return void(failed = Status::workspace_too_small);
      const RaggedView<float> scores{s.take<float>(l.total()), l.offset.data(), heads};
      auto* shield = s.take<evict::Protected>(heads);
      if (scores.data == nullptr || shield == nullptr) return void(failed = Status::workspace_too_small);
      pipeline_.protect_ends(view, shield);
      failed = pipeline_.rank(ctx, view, {lanes, static_cast<std::size_t>(lane_count)}, shield, scores, s);
      for (index_t h = 0; h < heads && failed == Status::ok; ++h)
        use(layer * heads + h, scores.row(h) + shield[h].prefix, view.slots(h) - shield[h].size(), shield[h].size());
    }
  };
  constexpr float stays = std::numeric_limits<float>::infinity();
  index_t seen = 0, open = 0, kept = 0;
  for (const Layer& l : layers_) seen += l.counters.seen * heads;
  each_head([&](index_t, const float* x, index_t n, index_t shielded) {
    const index_t sure = std::count(x, x + n, stays);
    open += n - sure, kept += shielded + sure;
  });
  const auto total = static_cast<index_t>(std::floor(share.keep * static_cast<double>(seen) + 1e-6));
  const index_t places = std::clamp<index_t>(total - kept, 0, open);
  prim::RowCutoff cut{};
  if (places > 0 && failed == Status::ok)
    cut = prim::find_cutoff(places, open, [&](auto&& use) {
      each_head([&](index_t, const float* x, index_t n, index_t) {
        for (index_t i = 0; i < n; ++i)
          if (x[i] != stays) use(prim::rank_bits(x[i]));
      });
    });
  index_t ties = share.strict && places < open ? 0 : cut.ties;
  each_head([&](index_t at, const float* x, index_t n, index_t shielded) {
    budget[at] = shielded;
    for (index_t i = 0; i < n; ++i) {
      const auto key = prim::rank_bits(x[i]);
      budget[at] += x[i] == stays || (places > 0 && (key > cut.bits || (key == cut.bits && ties-- > 0)));
    }
  });
  return failed;
}

}  // namespace kvcondense
