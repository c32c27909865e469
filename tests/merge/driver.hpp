#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <support/guarded.hpp>
#include <support/oracle.hpp>

namespace kvcondense::test {

inline std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
using Floats = std::vector<float>;
using FloatRows = std::vector<Floats>;
using Ints = std::vector<index_t>;

inline nlohmann::json merging_oracle(const std::string& key) { return load_oracle("merging_lowrank.json", key); }

/// One layer of plain rows and a merge stage over it: the step that a cache would run, without a cache. All heads hold
/// their own number of slots; numbers that a source would have counted are put into `lane`.
template <class P>
struct MergeDriver {
  struct Head {
    FloatRows key, value;
    Ints token, position;
    Ints kept;  ///< slots that eviction leaves; empty: all
    std::vector<Floats> lane;
    Floats state;
    // after a step
    std::vector<std::int32_t> to;
    Ints stay;
    index_t folded = 0;
  };

  CacheShape shape;
  P pipeline;
  merge::Traits traits;
  std::vector<Head> head;
  Phase phase = Phase::prefill_end;
  index_t seen = 0, layer = 0;
  StepInputs inputs{};
  const QueryColumns<Cpu>* columns = nullptr;
  std::size_t workspace_cut = 0;
  FloatRows weights_key, weights_value;  ///< of the last step

  MergeDriver(const CacheShape& s, const P& p) : shape(s), pipeline(p), traits(p.traits()), head(at(s.kv_heads)) {
    if (shape.softmax_scale == 0.0f) shape.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  }

  /// Rows of a head, all of them new.
  void fill(index_t h, const FloatRows& keys, const FloatRows& values) {
    Head& x = head[at(h)];
    x.key = keys, x.value = values;
    x.token.clear(), x.position.clear();
    for (std::size_t i = 0; i < keys.size(); ++i) x.token.push_back(static_cast<index_t>(i)), x.position.push_back(static_cast<index_t>(i));
    seen = std::max(seen, static_cast<index_t>(keys.size()));
    x.lane.assign(at(traits.lanes), Floats(keys.size(), 0.0f));
    if (traits.value_scale >= 0) x.lane[at(traits.value_scale)].assign(keys.size(), 1.0f);
    if (x.state.empty()) x.state.assign(at(traits.state), 0.0f);
  }

  /// Takes tokens from ordinal `tokens` on back.
  void truncate(index_t tokens) {
    for (Head& x : head) {
      const auto left = std::lower_bound(x.token.begin(), x.token.end(), tokens) - x.token.begin();
      const auto cut = [&](auto& all) { all.resize(at(left)); };
      cut(x.key), cut(x.value), cut(x.token), cut(x.position);
      for (Floats& l : x.lane) cut(l);
      if (traits.state > 0) pipeline.truncate(tokens, x.state.data());
    }
    seen = tokens;
  }

  Status step() {
    const index_t heads = shape.kv_heads;
    Ints offset{0};
    for (const Head& x : head) offset.push_back(offset.back() + static_cast<index_t>(x.key.size()));
    const index_t total = offset.back();
    const auto raw = [&](auto zero, auto&& get) {
      std::vector<decltype(zero)> all;
      for (index_t h = 0; h < heads; ++h)
        for (std::size_t j = 0; j < head[at(h)].key.size(); ++j) all.push_back(static_cast<decltype(zero)>(get(head[at(h)], j)));
      return all;
    };
    auto tokens = raw(std::int32_t{}, [](const Head& x, std::size_t j) { return x.token[j]; });
    std::vector<Floats> lanes;
    for (index_t l = 0; l < traits.lanes; ++l)
      lanes.push_back(raw(0.0f, [&](const Head& x, std::size_t j) {
        return l == traits.place ? std::bit_cast<float>(static_cast<std::int32_t>(x.position[j])) : x.lane[at(l)][j];
      }));
    const Rows keys{head, offset, shape.head_dim, true}, values{head, offset, shape.values(), false};

    StepView<Cpu> view;
    view.shape = shape, view.layer = layer, view.seen = seen, view.phase = phase, view.inputs = inputs;
    view.appended = phase == Phase::decode ? 1 : seen, view.generated = phase == Phase::decode ? 1 : 0;
    view.offset = offset.data(), view.keys = &keys, view.values = &values, view.columns = columns;
    Guarded<std::int32_t> kept(at(total)), to(at(total)), turn(at(total)), order(at(total));
    Guarded<float> likeness(at(total), NAN), wk(at(total), NAN), wv(at(total), NAN), state(at(heads * traits.state));
    std::vector<index_t> count(at(heads)), budget(at(heads)), folded(at(heads));
    std::vector<prim::SlotRange> targets(at(heads));
    const auto ragged = [&](auto* data) { return RaggedView<std::remove_reference_t<decltype(*data)>>{data, offset.data(), heads}; };
    for (index_t h = 0; h < heads; ++h) {
      Head& x = head[at(h)];
      const auto n = static_cast<index_t>(x.key.size());
      targets[at(h)] = {0, 0, n};
      count[at(h)] = x.kept.empty() ? n : static_cast<index_t>(x.kept.size());
      for (std::size_t i = 0; i < x.kept.size(); ++i) kept.data()[at(offset[at(h)]) + i] = static_cast<std::int32_t>(x.kept[i]);
      std::copy(x.state.begin(), x.state.end(), state.data() + h * traits.state);
    }
    std::vector<RaggedView<float>> lane_views;
    for (auto& l : lanes) lane_views.push_back(ragged(l.data()));
    merge::Scene<Cpu> scene;
    scene.view = &view, scene.targets = targets.data(), scene.tokens = ragged(tokens.data());
    scene.state = dense_view(state.data(), heads, traits.state);
    scene.links = {ragged(to.data()), ragged(likeness.data()), ragged(wk.data()), ragged(wv.data()), traits.fan};
    const evict::KeepSet keep{ragged(kept.data()), count.data(), budget.data(), nullptr};
    Context<Cpu> ctx;
    const std::size_t bytes = pipeline.workspace_bytes(shape, total);
    Guarded<std::byte> scratch(bytes);
    const Status s = pipeline.decide(ctx, scene, lane_views, keep, ragged(turn.data()), folded.data(),
                                     Scratch(std::span(scratch.data(), bytes - workspace_cut)));
    if (s != Status::ok) return s;

    prim::CombineRequest request;
    const auto angles = prim::rope_angles(traits.rope, shape.head_dim);
    request.links = scene.links, request.targets = targets.data(), request.order = ragged(order.data());
    request.keys = traits.target == merge::Target::keys_and_values, request.split = traits.split;
    if (traits.place >= 0) request.angles = &*angles, request.turn = ragged(turn.data());
    if (traits.mass == merge::Mass::exact) request.bias = lane_views[at(traits.bias)], request.queries = inputs.queries;
    request.softmax_scale = shape.softmax_scale;
    const Status combined = prim::SegmentedCombine<Cpu>::run(ctx, request, [&](index_t h) { return Sums{&head[at(h)]}; });
    if (combined != Status::ok) return combined;

    weights_key.assign(at(heads), {}), weights_value.assign(at(heads), {});
    for (index_t h = 0; h < heads; ++h) {
      Head& x = head[at(h)];
      const index_t o = offset[at(h)], n = static_cast<index_t>(x.key.size());
      x.to.assign(to.data() + o, to.data() + o + n);
      weights_key[at(h)].assign(wk.data() + o, wk.data() + o + n), weights_value[at(h)].assign(wv.data() + o, wv.data() + o + n);
      x.stay.assign(kept.data() + o, kept.data() + o + count[at(h)]);
      x.folded = folded[at(h)];
      x.state.assign(state.data() + h * traits.state, state.data() + (h + 1) * traits.state);
      for (std::size_t l = 0; l < x.lane.size(); ++l) x.lane[l].assign(lanes[l].data() + o, lanes[l].data() + o + n);
      if (traits.place >= 0)
        for (index_t j = 0; j < n; ++j) x.position[at(j)] = std::bit_cast<std::int32_t>(x.lane[at(traits.place)][at(j)]);
      const auto gather = [&](auto& all) {
        auto old = all;
        all.clear();
        for (const index_t j : x.stay) all.push_back(old[at(j)]);
      };
      gather(x.key), gather(x.value), gather(x.token), gather(x.position);
      for (auto& l : x.lane) gather(l);
      x.kept.clear();
    }
    const bool ok = kept.ok() && to.ok() && turn.ok() && order.ok() && likeness.ok() && wk.ok() && wv.ok() && state.ok() && scratch.ok();
    return ok ? Status::ok : Status::corrupt_data;
  }

 private:
  struct Rows final : SlotRows<Cpu> {
    const std::vector<Head>* all;
    index_t size;
    bool keys;
    Rows(const std::vector<Head>& heads, const Ints&, index_t dim, bool k) : all(&heads), size(dim), keys(k) {}
    index_t dim() const noexcept override { return size; }
    void read(index_t h, index_t first, prim::RowBlock<float> out) const noexcept override {
      const FloatRows& rows = keys ? (*all)[at(h)].key : (*all)[at(h)].value;
      for (index_t i = 0; i < out.rows; ++i) std::copy_n(rows[at(first + i)].data(), size, out.data + i * out.step);
    }
  };
  struct Sums {
    Head* x;
    index_t key_dim() const { return static_cast<index_t>(x->key[0].size()); }
    index_t value_dim() const { return static_cast<index_t>(x->value[0].size()); }
    void key(index_t j, float* row) const { std::copy(x->key[at(j)].begin(), x->key[at(j)].end(), row); }
    void value(index_t j, float* row) const { std::copy(x->value[at(j)].begin(), x->value[at(j)].end(), row); }
    void set_key(index_t j, float* row) const { x->key[at(j)].assign(row, row + key_dim()); }
    void set_value(index_t j, float* row) const { x->value[at(j)].assign(row, row + value_dim()); }
  };
};

template <class M>
auto merge_driver(const CacheShape& shape, const M& method) {
  REQUIRE(method.validate(shape) == Status::ok);
  return MergeDriver<decltype(method.pipeline())>(shape, method.pipeline());
}

/// One head of rows of this size, in float32.
inline CacheShape one_head(index_t dim) { return {.q_heads = 1, .kv_heads = 1, .head_dim = dim, .dtype = DType::f32}; }

inline FloatRows rows_of(const nlohmann::json& j) {
  FloatRows all;
  for (const auto& row : j) all.push_back(row.get<Floats>());
  return all;
}

inline void require_rows(const FloatRows& got, const FloatRows& want, double margin = 1e-6) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    for (std::size_t d = 0; d < got[i].size(); ++d) {
      CAPTURE(i, d);
      REQUIRE(got[i][d] == Approx(want[i][d]).margin(margin));
    }
}

}  // namespace kvcondense::test
