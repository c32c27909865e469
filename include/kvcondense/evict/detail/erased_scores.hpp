#pragma once

#include <concepts>
#include <cstddef>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/detail/chain.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict::detail {

using View = StepView<Cpu>;
using Ctx = Context<Cpu>;

struct SourceTable {
  using At = const Link<SourceTable>*;
  AttentionNeed (*attention)(At);
  AttentionNeed (*queries)(At);
  Inputs (*inputs)(At);
  index_t (*lanes)(At);
  index_t (*score_lane)(At);
  bool (*one_set)(At);
  bool (*gives_shares)(At);
  bool (*by_age)(At);
  bool (*rotated_keys)(At);
  Touches (*touches)(At);
  Counting (*counting)(At, const CacheShape&, index_t);
  std::size_t (*workspace_bytes)(At, const CacheShape&, index_t);
  Status (*observe)(At, Ctx&, const View&, LaneViews);
  Status (*observe_counted)(At, Ctx&, const View&, LaneViews);
  Status (*observe_turn)(At, Ctx&, const View&, LaneViews);
  bool (*probes)(At);
  Status (*observe_probe)(At, Ctx&, const View&, LaneViews, Scratch&);
  Status (*score)(At, Ctx&, const View&, LaneViews, RaggedView<float>, Scratch&);

  template <class S>
  static consteval SourceTable of() {
    return {[](At a) { return block_at<S>(a).attention(); },
            [](At a) { return query_need(block_at<S>(a)); },
            [](At a) { return input_need(block_at<S>(a)); },
            [](At a) { return block_at<S>(a).lanes(); },
            [](At a) { return evict::score_lane(block_at<S>(a)); },
            [](At a) { return block_at<S>(a).one_set(); },
            [](At a) { return evict::gives_shares(block_at<S>(a)); },
            [](At a) { return scores_age(block_at<S>(a)); },
            [](At a) { return reads_rotated_keys(block_at<S>(a)); },
            [](At a) { return evict::touches(block_at<S>(a)); },
            [](At a, const CacheShape& s, index_t n) { return evict::counting(block_at<S>(a), s, n); },
            [](At a, const CacheShape& s, index_t n) { return block_at<S>(a).workspace_bytes(s, n); },
            [](At a, Ctx& c, const View& v, LaneViews l) { return block_at<S>(a).observe(c, v, l); },
            [](At a, Ctx& c, const View& v, LaneViews l) { return evict::observe_counted(block_at<S>(a), c, v, l); },
            [](At a, Ctx& c, const View& v, LaneViews l) {
              return evict::observe_turn(block_at<S>(a), c, v, l);
            },
            [](At a) { return answers_probes(block_at<S>(a)); },
            [](At a, Ctx& c, const View& v, LaneViews l, Scratch& s) {
              return evict::observe_probe(block_at<S>(a), c, v, l, s);
            },
            [](At a, Ctx& c, const View& v, LaneViews l, RaggedView<float> out, Scratch& s) {
              return block_at<S>(a).score(c, v, l, out, s);
            }};
  }
};

struct PoolTable {
  using At = const Link<PoolTable>*;
  bool (*keeps_shares)(At);
  bool (*leaves_scores)(At);
  std::size_t (*workspace_bytes)(At, const CacheShape&, index_t);
  Status (*run)(At, Ctx&, const View&, const Protected*, RaggedView<float>, Scratch&);

  template <class P>
  static consteval PoolTable of() {
    return {[](At a) { return evict::keeps_shares(block_at<P>(a)); },
            [](At a) { return evict::leaves_scores(block_at<P>(a)); },
            [](At a, const CacheShape& s, index_t n) { return block_at<P>(a).workspace_bytes(s, n); },
            [](At a, Ctx& c, const View& v, const Protected* p, RaggedView<float> x, Scratch& s) {
              return block_at<P>(a).run(c, v, p, x, s);
            }};
  }
};

/// What a source does, wherever its link lies.
template <class Self>
struct SourceCalls {
  AttentionNeed attention() const { return at() ? at()->table->attention(at()) : AttentionNeed{}; }
  AttentionNeed queries() const { return at() ? at()->table->queries(at()) : AttentionNeed{}; }
  Inputs inputs() const { return at() ? at()->table->inputs(at()) : Inputs{}; }
  index_t lanes() const { return at() ? at()->table->lanes(at()) : 0; }
  index_t score_lane() const { return at() ? at()->table->score_lane(at()) : -1; }
  bool one_set() const { return at() && at()->table->one_set(at()); }
  bool gives_shares() const { return at() && at()->table->gives_shares(at()); }
  bool by_age() const { return at() && at()->table->by_age(at()); }
  bool rotated_keys() const { return at() && at()->table->rotated_keys(at()); }
  Touches touches() const { return at() ? at()->table->touches(at()) : Touches::any; }
  Counting counting(const CacheShape& shape, index_t rows) const { return at() ? at()->table->counting(at(), shape, rows) : Counting{}; }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return at() ? at()->table->workspace_bytes(at(), shape, slots) : 0;
  }
  Status observe(Ctx& ctx, const View& view, LaneViews lane) const {
    return at() ? at()->table->observe(at(), ctx, view, lane) : Status::not_supported;
  }
  Status observe_counted(Ctx& ctx, const View& view, LaneViews lane) const {
    return at() ? at()->table->observe_counted(at(), ctx, view, lane) : Status::not_supported;
  }
  Status observe_turn(Ctx& ctx, const View& view, LaneViews lane) const {
    return at() ? at()->table->observe_turn(at(), ctx, view, lane) : Status::not_supported;
  }
  bool probes() const { return at() && at()->table->probes(at()); }
  Status observe_probe(Ctx& ctx, const View& view, LaneViews lane, Scratch& s) const {
    return at() ? at()->table->observe_probe(at(), ctx, view, lane, s) : Status::not_supported;
  }
  Status score(Ctx& ctx, const View& view, LaneViews lane, RaggedView<float> out, Scratch& s) const {
    return at() ? at()->table->score(at(), ctx, view, lane, out, s) : Status::not_supported;
  }

 private:
  const Link<SourceTable>* at() const { return static_cast<const Self*>(this)->top(); }
};

template <class Self>
struct PoolCalls {
  bool keeps_shares() const { return at() && at()->table->keeps_shares(at()); }
  bool leaves_scores() const { return at() && at()->table->leaves_scores(at()); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return at() ? at()->table->workspace_bytes(at(), shape, slots) : 0;
  }
  Status run(Ctx& ctx, const View& view, const Protected* shield, RaggedView<float> scores,
             Scratch& s) const {
    return at() ? at()->table->run(at(), ctx, view, shield, scores, s) : Status::not_supported;
  }

 private:
  const Link<PoolTable>* at() const { return static_cast<const Self*>(this)->top(); }
};

}  // namespace kvcondense::evict::detail
