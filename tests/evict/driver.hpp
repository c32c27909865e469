#pragma once

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>
#include <support/oracle.hpp>

namespace kvcondense::test {

using Ints = std::vector<index_t>;
using Rows = std::vector<Ints>;

inline std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

inline nlohmann::json eviction_oracle(const std::string& key) { return load_oracle("eviction.json", key); }

/// A number of a head and one of its tokens: a kept score, an attention mass.
using PerToken = std::function<double(index_t head, index_t token)>;

/// Runs a pipeline as the cache does, on tokens that are only numbers: appends them to every head,
/// observes, chooses, and gathers tokens and lanes by the kept slots. All outputs are guarded.
template <class Pipeline>
struct Driver {
  CacheShape shape;
  Pipeline pipeline;
  index_t layer = 0;
  index_t seen = 0;
  index_t stepped = 0;  // tokens of all steps
  index_t prompt = 0;  // tokens when the last prompt ended
  Rows held;                                            // tokens of each head
  std::vector<std::vector<std::vector<float>>> lane;    // [lane][head][slot]
  StepInputs inputs;                                    // of the next step; the mass is put in by step
  std::shared_ptr<const void> owner;                    // may hold what they look at
  std::function<float(index_t, index_t, index_t)> key, value;  // (head, token, channel); none: not there
  std::function<float(index_t, index_t, index_t)> query;       // (query head, token, channel); none: no columns
  const QueryColumns<Cpu>* columns = nullptr;                  // instead of those of `query`
  // What the last step said.
  Rows kept;
  Ints budget;
  index_t nan = 0;
  bool fired = false;
  std::size_t workspace_cut = 0;  // bytes taken away from the workspace

  Driver(const CacheShape& s, const Pipeline& p)
      : shape(s),
        pipeline(p),
        held(at(s.kv_heads)),
        lane(at(p.lanes()), std::vector<std::vector<float>>(at(s.kv_heads))) {}

  Status step(index_t appended, Phase phase, const PerToken& mass = {}) {
    for (auto& row : held)
      for (index_t i = 0; i < appended; ++i) row.push_back(seen + i);
    for (auto& l : lane)
      for (index_t h = 0; h < shape.kv_heads; ++h) l[at(h)].resize(held[at(h)].size(), 0.0f);
    seen += appended, stepped += appended;
    return run(appended, phase, mass);
  }

  /// Rows that the marks in a lane say have seen each slot.
  std::vector<float> exposed(std::size_t l, index_t head) const {
    std::vector<float> rows;
    for (const float mark : lane[l][at(head)]) rows.push_back(static_cast<float>(prim::exposed_rows(mark, static_cast<std::uint32_t>(stepped))));
    return rows;
  }

 private:
  struct HeldRows final : SlotRows<Cpu> {
    const Rows* held;
    const std::function<float(index_t, index_t, index_t)>* number;
    index_t size;
    HeldRows(const Rows& h, const std::function<float(index_t, index_t, index_t)>& f, index_t dim)
        : held(&h), number(&f), size(dim) {}
    index_t dim() const noexcept override { return size; }
    void read(index_t h, index_t first, prim::RowBlock<float> out) const noexcept override {
      for (index_t i = 0; i < out.rows; ++i)
        for (index_t d = 0; d < size; ++d)
          out.data[i * out.step + d] = (*number)(h, (*held)[at(h)][at(first + i)], d);
    }
  };

  /// Attention of the queries of this step, or of as many newest ones as the pipeline looks back at.
  struct HeldColumns final : QueryColumns<Cpu> {
    const Driver* of;
    const HeldRows* keys;
    index_t appended;
    HeldColumns(const Driver& d, const HeldRows& k, index_t n) : of(&d), keys(&k), appended(n) {}
    index_t rows() const noexcept override {
      const AttentionNeed need = of->pipeline.queries();
      return need.rows == AttentionNeed::Rows::last ? std::max(appended, std::min(need.count, of->seen)) : appended;
    }
    Status run(Context<Cpu>&, const prim::ColumnRequest& request) const noexcept override {
      if (request.rows > rows()) return Status::out_of_range;
      CacheShape scaled = of->shape;
      if (scaled.softmax_scale == 0.0f) scaled.softmax_scale = 1.0f / std::sqrt(static_cast<float>(scaled.head_dim));
      std::vector<std::byte> memory(prim::AttendColumns<Cpu>::workspace_bytes(1, scaled, request.rows));
      Context<Cpu> ctx(memory);
      return prim::AttendColumns<Cpu>::run(ctx, request, scaled, [&](index_t h) { return Head{this, h, request.rows}; });
    }
    struct Head {
      struct Cursor {};
      const HeldColumns* c;
      index_t h, rows;
      const Ints& tokens() const { return c->of->held[at(h)]; }
      index_t slots() const { return static_cast<index_t>(tokens().size()); }
      index_t token(index_t slot) const { return tokens()[at(slot)]; }
      index_t row_token(index_t row) const { return c->of->seen - rows + row; }
      index_t visible(index_t row) const {
        return std::upper_bound(tokens().begin(), tokens().end(), row_token(row)) - tokens().begin();
      }
      void load_query(index_t row, index_t member, float* out) const {
        const CacheShape& s = c->of->shape;
        for (index_t d = 0; d < s.head_dim; ++d) out[d] = c->of->query(h * s.group() + member, row_token(row), d);
      }
      void key_scores(Cursor&, index_t n, prim::RowBlock<const float> queries, prim::RowBlock<float> out, index_t first) const {
        std::vector<float> tile(at(n * c->keys->size));
        c->keys->read(h, first, {tile.data(), n, c->keys->size});
        prim::cpu::dot_rows(tile.data(), n, c->keys->size, queries, out);
      }
    };
  };

  Status run(index_t appended, Phase phase, const PerToken& mass) {
    const index_t heads = shape.kv_heads;
    Ints offset{0};
    for (const auto& row : held) offset.push_back(offset.back() + static_cast<index_t>(row.size()));
    const index_t total = offset.back();
    Guarded<float> weights(at(total));
    std::deque<Guarded<float>> lanes;
    for (const auto& l : lane) {
      lanes.emplace_back(at(total));
      for (index_t h = 0; h < heads; ++h)
        std::copy(l[at(h)].begin(), l[at(h)].end(), lanes.back().data() + offset[at(h)]);
    }
    std::fill_n(weights.data(), total, 0.0f);
    if (mass)
      for (index_t h = 0; h < heads; ++h)
        for (std::size_t j = 0; j < held[at(h)].size(); ++j)
          weights.data()[at(offset[at(h)]) + j] = static_cast<float>(mass(h, held[at(h)][j]));
    const HeldRows keys(held, key, shape.head_dim), values(held, value, shape.values());
    StepView<Cpu> view;
    view.shape = shape;
    view.layer = layer;
    view.appended = appended;
    view.seen = seen, view.stepped = stepped;
    if (phase == Phase::prefill_chunk || phase == Phase::prefill_end) prompt = seen;
    view.generated = seen - prompt;
    view.phase = phase;
    view.inputs = inputs;
    view.inputs.attention.mass = {weights.data(), offset.data(), heads};
    view.inputs.attention.rows = pipeline.attention().of(appended);
    view.offset = offset.data();
    view.keys = key ? &keys : nullptr;
    view.values = value ? &values : nullptr;
    const HeldColumns own(*this, keys, appended);
    view.columns = columns != nullptr ? columns : query ? &own : nullptr;

    Guarded<std::int32_t> slots(at(total));
    Guarded<index_t> counts(at(heads)), budgets(at(heads));
    std::vector<RaggedView<float>> views;
    for (auto& l : lanes) views.push_back({l.data(), offset.data(), heads});
    Context<Cpu> ctx;
    if (const Status s = pipeline.observe(ctx, view, views); s != Status::ok) return s;
    fired = pipeline.fires(view);
    kept.assign(at(heads), {});
    budget.clear();
    nan = 0;
    if (fired) {
      const std::size_t bytes = pipeline.workspace_bytes(shape, total);
      std::vector<std::byte> memory(bytes + 3 * Scratch::align, std::byte{0x7f});
      auto* begin = memory.data();
      begin += (Scratch::align - reinterpret_cast<std::uintptr_t>(begin) % Scratch::align) % Scratch::align;
      const Scratch scratch({begin, bytes - workspace_cut});
      const evict::KeepSet keep{{slots.data(), offset.data(), heads}, counts.data(), budgets.data(), &nan};
      if (const Status s = pipeline.choose(ctx, view, views, keep, scratch); s != Status::ok) return s;
      for (std::size_t i = bytes; i < bytes + Scratch::align; ++i)
        if (begin[i] != std::byte{0x7f}) return Status::corrupt_data;
    }
    for (index_t h = 0; h < heads; ++h) {
      auto& row = held[at(h)];
      if (!fired) {
        for (std::size_t j = 0; j < row.size(); ++j) kept[at(h)].push_back(static_cast<index_t>(j));
        budget.push_back(static_cast<index_t>(row.size()));
      } else {
        for (index_t i = 0; i < counts.data()[at(h)]; ++i)
          kept[at(h)].push_back(slots.data()[at(offset[at(h)] + i)]);
        budget.push_back(budgets.data()[at(h)]);
      }
      Ints tokens;
      for (const index_t slot : kept[at(h)]) tokens.push_back(row[at(slot)]);
      for (std::size_t l = 0; l < lane.size(); ++l) {
        std::vector<float> gathered;
        for (const index_t slot : kept[at(h)])
          gathered.push_back(lanes[l].data()[at(offset[at(h)] + slot)]);
        lane[l][at(h)] = gathered;
      }
      row = tokens;
    }
    bool guarded = weights.ok() && slots.ok() && counts.ok() && budgets.ok();
    for (const auto& l : lanes) guarded = guarded && l.ok();
    return guarded ? Status::ok : Status::corrupt_data;
  }
};

template <class P>
auto drive(const CacheShape& shape, const P& policy) {
  return Driver<decltype(policy.pipeline())>(shape, policy.pipeline());
}

/// Numbers of tokens that have nothing to do with each other, from -spread / 2 to spread / 2.
using Channels = std::function<float(index_t head, index_t token, index_t channel)>;
inline Channels noise(std::uint64_t seed, float spread = 1.0f) {
  return [=](index_t h, index_t t, index_t c) {
    return spread * (random_uniform(seed, static_cast<std::uint64_t>((h * 4096 + t) * 256 + c)) - 0.5f);
  };
}

/// The same numbers, made once for so many heads, tokens and channels: for tests that read each of them often.
inline Channels remembered(const Channels& made, index_t heads, index_t tokens, index_t channels) {
  std::vector<float> list;
  for (index_t h = 0; h < heads; ++h)
    for (index_t t = 0; t < tokens; ++t)
      for (index_t c = 0; c < channels; ++c) list.push_back(made(h, t, c));
  return [=, list = std::move(list)](index_t h, index_t t, index_t c) { return list.at(at((h * tokens + t) * channels + c)); };
}

/// A driver whose keys and queries are such numbers.
template <class P>
auto drive_noise(const CacheShape& shape, const P& policy) {
  auto d = drive(shape, policy);
  d.key = noise(5, 2.0f), d.query = noise(6, 4.0f);
  return d;
}

/// The fixed vectors of the oracles, and attention over any of its tokens in double.
struct FX1 {
  nlohmann::json data = eviction_oracle("fixture_FX1");
  CacheShape shape{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 4, .dtype = DType::f32};

  double q(index_t h, index_t t, index_t d) const { return data["Q"][at(h)][at(t)][at(d)]; }
  double k(index_t h, index_t t, index_t d) const { return data["K"][at(h)][at(t)][at(d)]; }
  double v(index_t h, index_t t, index_t d) const { return data["V"][at(h)][at(t)][at(d)]; }

  /// Probabilities of query head h at `query` over these tokens (later ones get nothing).
  std::vector<double> probabilities(index_t h, index_t query, const Ints& tokens) const {
    std::vector<double> p;
    double sum = 0;
    for (const index_t t : tokens) {
      double z = 0;
      for (index_t d = 0; d < 4; ++d) z += q(h, query, d) * k(h / 2, t, d);
      p.push_back(t <= query ? std::exp(0.5 * z) : 0.0);
      sum += p.back();
    }
    for (double& x : p) x /= sum;
    return p;
  }

  /// Mass of kv head g and a token: the queries [first, last), each over `held` tokens of the head.
  PerToken mass(index_t first, index_t last, const Rows& held) const {
    return [this, first, last, held](index_t g, index_t token) {
      double sum = 0;
      const Ints& tokens = held[at(g)];
      const auto j = std::find(tokens.begin(), tokens.end(), token) - tokens.begin();
      for (index_t h = 2 * g; h < 2 * g + 2; ++h)
        for (index_t i = first; i < last; ++i)
          sum += probabilities(h, i, tokens)[static_cast<std::size_t>(j)];
      return sum;
    };
  }
};

/// The tokens of each head with `more` new ones.
inline Rows with_new(Rows held, index_t first, index_t more) {
  for (auto& row : held)
    for (index_t i = 0; i < more; ++i) row.push_back(first + i);
  return held;
}

}  // namespace kvcondense::test
