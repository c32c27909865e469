#pragma once

#include <cstddef>

#include <kvcondense/evict/detail/erased_scores.hpp>

namespace kvcondense::evict::detail {

struct ProtectTable {
  using At = const Link<ProtectTable>*;
  bool (*judges_once)(At);
  index_t (*most)(At);
  Protected (*shield)(At, const View&, index_t);

  template <class P>
  static consteval ProtectTable of() {
    return {[](At a) { return evict::judges_once(block_at<P>(a)); },
            [](At a) { return block_at<P>(a).most(); },
            [](At a, const View& v, index_t h) { return block_at<P>(a).of(v, h); }};
  }
};

struct AllocateTable {
  using At = const Link<AllocateTable>*;
  bool (*uses_scores)(At);
  bool (*asks_for_room_alone)(At);
  ModelShare (*model_share)(At);
  index_t (*expects)(At, const View&, index_t, Protected);
  std::size_t (*workspace_bytes)(At, const CacheShape&, index_t);
  Status (*run)(At, Ctx&, const View&, RaggedView<const float>, const Protected*, index_t*, Scratch&);

  template <class A>
  static consteval AllocateTable of() {
    return {[](At a) { return block_at<A>(a).uses_scores(); },
            [](At a) { return evict::asks_for_room_alone(block_at<A>(a)); },
            [](At a) { return evict::model_share(block_at<A>(a)); },
            [](At a, const View& v, index_t h, Protected p) { return expected_slots(block_at<A>(a), v, h, p); },
            [](At a, const CacheShape& s, index_t n) { return block_at<A>(a).workspace_bytes(s, n); },
            [](At a, Ctx& c, const View& v, RaggedView<const float> x, const Protected* p, index_t* b,
               Scratch& s) { return block_at<A>(a).run(c, v, x, p, b, s); }};
  }
};

struct SelectTable {
  using At = const Link<SelectTable>*;
  bool (*takes_best)(At);
  bool (*asks_for_room_alone)(At);
  bool (*reads_scores)(At);
  std::size_t (*workspace_bytes)(At, const CacheShape&, index_t);
  Status (*run)(At, Ctx&, const View&, RaggedView<const float>, const Protected*, const KeepSet&,
                Scratch&);

  template <class S>
  static consteval SelectTable of() {
    return {[](At a) { return evict::takes_best(block_at<S>(a)); },
            [](At a) { return evict::asks_for_room_alone(block_at<S>(a)); },
            [](At a) { return evict::reads_scores(block_at<S>(a)); },
            [](At a, const CacheShape& s, index_t n) { return block_at<S>(a).workspace_bytes(s, n); },
            [](At a, Ctx& c, const View& v, RaggedView<const float> x, const Protected* p,
               const KeepSet& k, Scratch& s) { return block_at<S>(a).run(c, v, x, p, k, s); }};
  }
};

struct TriggerTable {
  using At = const Link<TriggerTable>*;
  bool (*fires)(At, const View&, LayerBudget<Cpu>);

  template <class T>
  static consteval TriggerTable of() {
    TriggerTable table{};  // braces around one lambda nvcc does not hand on
    table.fires = [](At a, const View& v, LayerBudget<Cpu> b) { return trigger_fires(block_at<T>(a), v, b); };
    return table;
  }
};

template <class Self>
struct ProtectCalls {
  bool judges_once() const { return at() && at()->table->judges_once(at()); }
  index_t most() const { return at() ? at()->table->most(at()) : 0; }
  Protected of(const View& view, index_t head) const {
    return at() ? at()->table->shield(at(), view, head) : Protected{};
  }

 private:
  const Link<ProtectTable>* at() const { return static_cast<const Self*>(this)->top(); }
};

template <class Self>
struct AllocateCalls {
  bool uses_scores() const { return at() && at()->table->uses_scores(at()); }
  bool asks_for_room_alone() const { return at() && at()->table->asks_for_room_alone(at()); }
  ModelShare model_share() const { return at() ? at()->table->model_share(at()) : ModelShare{}; }
  index_t expects(const View& view, index_t head, Protected shield) const {
    return at() ? at()->table->expects(at(), view, head, shield) : 0;
  }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return at() ? at()->table->workspace_bytes(at(), shape, slots) : 0;
  }
  Status run(Ctx& ctx, const View& view, RaggedView<const float> scores, const Protected* shield,
             index_t* budget, Scratch& s) const {
    return at() ? at()->table->run(at(), ctx, view, scores, shield, budget, s) : Status::not_supported;
  }

 private:
  const Link<AllocateTable>* at() const { return static_cast<const Self*>(this)->top(); }
};

template <class Self>
struct SelectCalls {
  bool takes_best() const { return at() && at()->table->takes_best(at()); }
  bool asks_for_room_alone() const { return at() && at()->table->asks_for_room_alone(at()); }
  bool reads_scores() const { return at() && at()->table->reads_scores(at()); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return at() ? at()->table->workspace_bytes(at(), shape, slots) : 0;
  }
  Status run(Ctx& ctx, const View& view, RaggedView<const float> scores, const Protected* shield,
             const KeepSet& keep, Scratch& s) const {
    return at() ? at()->table->run(at(), ctx, view, scores, shield, keep, s) : Status::not_supported;
  }

 private:
  const Link<SelectTable>* at() const { return static_cast<const Self*>(this)->top(); }
};

template <class Self>
struct TriggerCalls {
  bool fires(const View& view, LayerBudget<Cpu> budget) const {
    return at() && at()->table->fires(at(), view, budget);
  }

 private:
  const Link<TriggerTable>* at() const { return static_cast<const Self*>(this)->top(); }
};

}  // namespace kvcondense::evict::detail
