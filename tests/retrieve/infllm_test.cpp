#include <limits>

#include <retrieve/feeder.hpp>
#include <retrieve/rig.hpp>
#include <support/cache_model.hpp>

using namespace kvcondense;
using test::Feeder;

namespace {

constexpr CacheShape small{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 16, .page_slots = 16};
constexpr retrieve::InfLlm usual{.block = 4, .blocks = 2, .init = 3, .local = 10, .representatives = 2, .chunk = 8};
const auto coded = recipe(usual, position::Rerotate{}, quant::Kivi<4>{.group_size = 8, .residual_window = 8});

/// Half-split RoPE of base 10000.
void turn(std::vector<double>& x, index_t position) {
  const std::size_t pairs = x.size() / 2;
  for (std::size_t i = 0; i < pairs; ++i) {
    const double angle = static_cast<double>(position) * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(x.size()));
    const double a = x[i], b = x[i + pairs];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + pairs] = b * std::cos(angle) + a * std::sin(angle);
  }
}

/// The method as its paper has it, in double, for one KV head of raw keys and queries, one token at a time.
struct Naive {
  retrieve::InfLlm m;
  std::size_t heads, dim;
  std::vector<std::vector<double>> keys, values;
  std::vector<std::vector<double>> drawn;  ///< [slot][head]

  double logit(const std::vector<double>& q, index_t at, index_t slot) const {
    std::vector<double> turned = q;
    turn(turned, std::min(at - slot, m.local));
    double dot = 0;
    for (std::size_t d = 0; d < dim; ++d) dot += turned[d] * keys[static_cast<std::size_t>(slot)][d];
    return dot / std::sqrt(static_cast<double>(dim));
  }
  std::vector<double> softmax(const std::vector<double>& q, index_t at, const std::vector<index_t>& slots) const {
    std::vector<double> p;
    double sum = 0;
    for (const index_t s : slots) p.push_back(std::exp(logit(q, at, s))), sum += p.back();
    for (double& x : p) x /= sum;
    return p;
  }
  std::vector<double> block_row(std::size_t head, index_t block) const {
    std::vector<index_t> slots;
    for (index_t i = 0; i < m.block; ++i) slots.push_back(m.init + block * m.block + i);
    std::stable_sort(slots.begin(), slots.end(), [&](index_t a, index_t b) { return drawn[static_cast<std::size_t>(a)][head] > drawn[static_cast<std::size_t>(b)][head]; });
    std::vector<double> mean(dim, 0.0);
    for (index_t i = 0; i < m.representatives; ++i)
      for (std::size_t d = 0; d < dim; ++d) mean[d] += keys[static_cast<std::size_t>(slots[static_cast<std::size_t>(i)])][d] / static_cast<double>(m.representatives);
    return mean;
  }

  /// The newest token, whose key and value are the last; queries [head]. Returns the slots that are read, and outputs.
  std::vector<index_t> attend(const std::vector<std::vector<double>>& q, std::vector<std::vector<double>>& out) {
    const auto n = static_cast<index_t>(keys.size()), at = n - 1;
    drawn.resize(keys.size(), std::vector<double>(heads, 0.0));
    const index_t whole = std::max<index_t>(0, (n - 1 - m.local - m.init) / m.block);
    std::vector<std::pair<double, index_t>> scores;
    for (index_t b = 0; b < whole; ++b) {
      double sum = 0;
      for (std::size_t h = 0; h < heads; ++h) {
        std::vector<double> far = q[h];
        turn(far, m.local);
        const auto row = block_row(h, b);
        for (std::size_t d = 0; d < dim; ++d) sum += far[d] * row[d];
      }
      scores.emplace_back(-sum, b);
    }
    std::sort(scores.begin(), scores.end());
    std::vector<bool> open(static_cast<std::size_t>(whole), false);
    for (std::size_t i = 0; i < scores.size() && static_cast<index_t>(i) < m.blocks; ++i) open[static_cast<std::size_t>(scores[i].second)] = true;
    std::vector<index_t> read;
    for (index_t s = 0; s < n; ++s) {
      const index_t b = s < m.init ? -1 : (s - m.init) / m.block;
      if (b < 0 || b >= whole || open[static_cast<std::size_t>(b)]) read.push_back(s);
    }
    std::vector<index_t> near;
    for (index_t s = 0; s < n; ++s)
      if (s < m.init || s > at - m.local) near.push_back(s);
    out.assign(heads, std::vector<double>(dim, 0.0));
    for (std::size_t h = 0; h < heads; ++h) {
      const auto p = softmax(q[h], at, read);
      for (std::size_t i = 0; i < read.size(); ++i)
        for (std::size_t d = 0; d < dim; ++d) out[h][d] += p[i] * values[static_cast<std::size_t>(read[i])][d];
      const auto share = softmax(q[h], at, near);
      for (std::size_t i = 0; i < near.size(); ++i)
        if (near[i] > at - m.local) drawn[static_cast<std::size_t>(near[i])][h] += share[i];
    }
    return read;
  }
};

}  // namespace

TEST_CASE("infllm: representatives, scores and the block of the worked case", "[retrieve][infllm]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "infllm");
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 4, .dtype = DType::f32};
  const index_t block = o["block"].get<index_t>(), local = o["n_local"].get<index_t>();
  const retrieve::InfLlm stage{.block = block, .blocks = 1, .init = 0, .local = local, .representatives = o["repr_topk"].get<index_t>()};
  const auto p = stage.pipeline();
  std::vector<float> keys;
  for (const auto& b : o["K_blocks_unrotated"])
    for (const auto& row : b)
      for (const auto& x : row) keys.push_back(x.get<float>());
  const index_t slots = 3 * block;
  const DenseRows rows(dense_view(static_cast<const float*>(keys.data()), 1, slots, 4));
  retrieve::UnitState state(heap_memory());
  state.width = 2;
  REQUIRE(state.drawn.resize(slots * 2) == Status::ok);
  for (index_t s = 0; s < slots; ++s)
    for (index_t h = 0; h < 2; ++h)
      state.drawn[s * 2 + h] = o["local_scores"][static_cast<std::size_t>(s / block)][static_cast<std::size_t>(h)][static_cast<std::size_t>(s % block)].get<float>();
  REQUIRE(state.plane[0].resize(3 * static_cast<index_t>(p.summary.plane_bytes(shape, 0))) == Status::ok);
  p.summary.build<Cpu>({&shape, {}, slots, &rows, &rows}, 0, 0, 3, state);
  for (index_t b = 0; b < 3; ++b)
    for (index_t h = 0; h < 2; ++h)
      for (index_t d = 0; d < 4; ++d) {
        float stored = 0;
        std::memcpy(&stored, state.plane[0].data() + ((b * 2 + h) * 4 + d) * 4, 4);
        REQUIRE(stored == o["rep_keys"][static_cast<std::size_t>(b)][static_cast<std::size_t>(h)][static_cast<std::size_t>(d)].get<float>());
      }

  // Two tokens of a question: [token][head].
  std::vector<float> q;
  for (std::size_t t = 0; t < 2; ++t)
    for (std::size_t h = 0; h < 2; ++h)
      for (const auto& x : o["Q_tokens"][t][h]) q.push_back(x.get<float>());
  const auto rope = prim::RopeTable::make({}, 4, heap_memory());
  retrieve::ReadView<Cpu> view;
  view.shape = shape, view.tokens = 2, view.queries = q.data(), view.rope = &*rope, view.state = &state;
  float sum[3] = {};
  for (index_t t = 0; t < 2; ++t)
    for (index_t h = 0; h < 2; ++h) {
      float turned[4];
      p.query.run<Cpu>(view, t, 0, h, turned);
      for (std::size_t d = 0; d < 4; ++d)
        REQUIRE(turned[d] == Approx(o["Q_rotated_at_n_local"][static_cast<std::size_t>(t)][static_cast<std::size_t>(h)][d].get<float>()).margin(1e-6));
    }
  // Heads together, tokens in the mean; the stage asks for whole heads of blocks behind its window.
  const index_t known = slots + local, all = slots + local + 2;
  view.slots = &all, view.known = &known;
  const index_t offset[] = {0, 3};
  std::int32_t units[3];
  index_t count[1];
  std::vector<std::byte> bytes(p.workspace_bytes(shape, all, 2));
  Context<Cpu> ctx;
  REQUIRE(p.candidates(view, 0).size() == 3);
  REQUIRE(p.choose(ctx, view, {{units, offset, 1}, count}, nullptr, Scratch(bytes)) == Status::ok);
  REQUIRE(count[0] == 1);
  REQUIRE(units[0] == o["top1"][0].get<int>());
  for (index_t t = 0; t < 2; ++t) {
    float prepared[8], one[6];
    for (index_t h = 0; h < 2; ++h) p.query.run<Cpu>(view, t, 0, h, prepared + 4 * h);
    p.summary.score<Cpu>(view, 0, 0, 3, {prepared, 2, 4}, {one, 2, 3});
    for (std::size_t b = 0; b < 3; ++b) sum[b] += (one[b] + one[3 + b]) / 2;
  }
  for (std::size_t b = 0; b < 3; ++b) REQUIRE(sum[b] == Approx(o["block_scores_sum_heads_mean_tokens"][b].get<float>()).margin(1e-6));
}

TEST_CASE("infllm: blocks, positions and what slots draw are those of the method in double", "[retrieve][infllm]") {
  const CacheShape shape{.q_heads = 3, .kv_heads = 1, .head_dim = 8, .dtype = DType::f32, .page_slots = 8};
  test::CacheRig<RecipeOf<retrieve::InfLlm, position::Rerotate>> rig(shape, recipe(usual, position::Rerotate{}), 128, 16);
  Naive naive{usual, 3, 8, {}, {}, {}};
  std::mt19937 random(5);
  index_t chosen = 0;
  for (index_t at = 0; at < 70; ++at) {
    const test::Tokens t(shape, 1, random, 2.0f);
    // The engine's queries and keys are rotated; the method's are not.
    std::vector<std::vector<double>> q(3);
    for (std::size_t h = 0; h < 3; ++h) {
      q[h].assign(t.q.begin() + static_cast<std::ptrdiff_t>(8 * h), t.q.begin() + static_cast<std::ptrdiff_t>(8 * h + 8));
      turn(q[h], -at);
    }
    naive.keys.emplace_back(t.k.begin(), t.k.end());
    turn(naive.keys.back(), -at);
    naive.values.emplace_back(t.v.begin(), t.v.end());
    std::vector<std::vector<double>> want;
    const auto read = naive.attend(q, want);
    std::vector<float> out(24);
    std::vector<SlotRun> runs(3 * 128);
    index_t count[3];
    ReadCounts reads;
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(rig.cache.attend(rig.ctx, 0, t.queries(shape), dense_view(out.data(), 3, 1, 8), {.reads = &reads, .runs = {runs.data(), 128, count}}) == Status::ok);
    chosen += reads.units_scored;
    CAPTURE(at);
    for (std::size_t h = 0; h < 3; ++h) {
      std::vector<index_t> slots;
      for (index_t i = 0; i < count[h]; ++i)
        for (index_t s = runs[h * 128 + static_cast<std::size_t>(i)].first; s < runs[h * 128 + static_cast<std::size_t>(i)].last; ++s) slots.push_back(s);
      REQUIRE(slots == read);
      for (std::size_t d = 0; d < 8; ++d) REQUIRE(out[8 * h + d] == Approx(want[h][d]).margin(2e-5));
    }
    REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = t.queries(shape)}) == Status::ok);
    const auto& state = rig.cache.layers()[0].index[0];
    REQUIRE(state.drawn.size() == 3 * (at + 1));
    for (std::size_t s = 0; s < naive.drawn.size(); ++s)
      for (std::size_t h = 0; h < 3; ++h) REQUIRE(state.drawn[static_cast<index_t>(3 * s + h)] == Approx(naive.drawn[s][h]).margin(2e-5));
  }
  REQUIRE(chosen > 100);
}

TEST_CASE("infllm: a window that holds everything is full attention, and a long call reads far slots at the window's end", "[retrieve][infllm]") {
  const auto outputs = [](auto r) {
    Feeder f(small, r);
    std::vector<float> all;
    for (const index_t n : {40, 1, 1, 5, 1}) {
      const auto out = f.forward(n);
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  };
  retrieve::InfLlm wide = usual;
  wide.local = 1000;
  REQUIRE(outputs(recipe(wide, position::Reindex{})) == outputs(recipe(position::Reindex{})));
  retrieve::InfLlm all = usual;
  all.blocks = 1000;
  retrieve::InfLlm longer = all;
  longer.chunk = 64;  // the prompt chooses, and takes everything
  REQUIRE(outputs(recipe(all, position::Reindex{})) == outputs(recipe(longer, position::Reindex{})));
  REQUIRE(outputs(recipe(all, position::Reindex{})) != outputs(recipe(position::Reindex{})));
}

TEST_CASE("infllm: a chunk draws what its tokens draw one by one, where the window holds both", "[retrieve][infllm]") {
  // Shares are of the first slots, the window and the chunk: the same while nothing has left the window.
  retrieve::InfLlm wide = usual;
  wide.local = 200;
  const auto drawn = [&](std::vector<index_t> calls) {
    Feeder f(small, recipe(wide, position::Reindex{}));
    std::mt19937 random(2);
    std::vector<test::Tokens> tokens;
    for (int i = 0; i < 120; ++i) tokens.emplace_back(small, 1, random, 2.0f);
    std::size_t at = 0;
    for (const index_t n : calls) {
      std::vector<float> k, v, q;
      const auto joined = [&](index_t heads, auto&& part, std::vector<float>& to) {
        for (index_t h = 0; h < heads; ++h)
          for (std::size_t i = at; i < at + static_cast<std::size_t>(n); ++i) {
            const auto& row = part(tokens[i]);
            to.insert(to.end(), row.begin() + 16 * h, row.begin() + 16 * (h + 1));
          }
      };
      joined(2, [](const auto& t) -> const auto& { return t.k; }, k);
      joined(2, [](const auto& t) -> const auto& { return t.v; }, v);
      joined(6, [](const auto& t) -> const auto& { return t.q; }, q);
      at += static_cast<std::size_t>(n);
      const auto keys = dense_view(static_cast<const float*>(k.data()), 2, n, 16), values = dense_view(static_cast<const float*>(v.data()), 2, n, 16);
      REQUIRE(f.cache().append(f.rig.ctx, 0, keys, values) == Status::ok);
      REQUIRE(f.cache().step(f.rig.ctx, 0, StepInputs{.queries = dense_view(static_cast<const float*>(q.data()), 6, n, 16)}) == Status::ok);
    }
    std::vector<float> all;
    for (const auto& i : f.cache().layers()[0].index) all.insert(all.end(), i.drawn.begin(), i.drawn.end());
    return all;
  };
  const auto one = drawn(std::vector<index_t>(120, 1)), some = drawn({50, 1, 9, 60});
  REQUIRE(one.size() == 120 * 6);
  double sum = 0;
  for (std::size_t i = 0; i < one.size(); ++i) {
    REQUIRE(some[i] == Approx(one[i]).margin(1e-4));
    sum += static_cast<double>(one[i]);
  }
  REQUIRE(sum == Approx(120.0 * 6).margin(1e-2));
}

TEST_CASE("infllm: any group, any head size, one token, none, and NaN", "[retrieve][infllm]") {
  const auto check = [](CacheShape shape) {
    CAPTURE(shape.q_heads, shape.head_dim);
    Feeder f(shape, recipe(usual, position::Rerotate{}));
    std::vector<float> q(static_cast<std::size_t>(shape.q_heads * shape.head_dim), 1.0f), out(static_cast<std::size_t>(shape.q_heads * shape.values()), 7.0f);
    const auto attend = [&] {
      return f.cache().attend(f.rig.ctx, 0, dense_view(q.data(), shape.q_heads, 1, shape.head_dim), dense_view(out.data(), shape.q_heads, 1, shape.values()));
    };
    REQUIRE(attend() == Status::ok);
    for (const float x : out) REQUIRE(x == 0.0f);
    for (const index_t n : {1, 1, 40, 1, 7, 1})
      for (const float x : f.forward(n)) REQUIRE(std::isfinite(x));
    // A query of NaN draws nothing, and the next one is as good as ever.
    std::fill(q.begin(), q.end(), std::numeric_limits<float>::quiet_NaN());
    REQUIRE(attend() == Status::ok);
    const test::Tokens t(shape, 1, f.random);
    REQUIRE(f.cache().append(f.rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(f.cache().step(f.rig.ctx, 0, StepInputs{.queries = dense_view(static_cast<const float*>(q.data()), shape.q_heads, 1, shape.head_dim)}) == Status::ok);
    for (const float x : f.cache().layers()[0].index[0].drawn) REQUIRE(std::isfinite(x));
    for (const float x : f.forward(1)) REQUIRE(std::isfinite(x));
  };
  for (index_t group = 1; group <= 16; ++group) check({.layers = 1, .q_heads = group, .kv_heads = 1, .head_dim = 8, .page_slots = 16});
  for (const index_t dim : {64, 80, 96, 112, 128, 256})
    check({.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = dim, .value_dim = dim / 2, .page_slots = 16});
}

TEST_CASE("infllm: every field changes what is read", "[retrieve][infllm]") {
  const auto outputs = [](retrieve::InfLlm stage) {
    Feeder f(small, recipe(stage, position::Reindex{}));
    std::vector<float> all;
    for (const index_t n : {60, 1, 1, 6, 1, 1}) {
      const auto out = f.forward(n);
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  };
  const auto base = outputs(usual);
  for (index_t retrieve::InfLlm::* field : {&retrieve::InfLlm::block, &retrieve::InfLlm::blocks, &retrieve::InfLlm::init, &retrieve::InfLlm::local,
                                            &retrieve::InfLlm::representatives}) {
    retrieve::InfLlm other = usual;
    ++(other.*field);
    REQUIRE(outputs(other) != base);
  }
  retrieve::InfLlm other = usual;
  other.chunk = 5;
  REQUIRE(outputs(other) != base);
  for (index_t retrieve::InfLlm::* field : {&retrieve::InfLlm::block, &retrieve::InfLlm::blocks, &retrieve::InfLlm::local, &retrieve::InfLlm::representatives,
                                            &retrieve::InfLlm::chunk}) {
    retrieve::InfLlm bad = usual;
    bad.*field = 0;
    REQUIRE(make_cache<Cpu>(small, recipe(bad, position::Reindex{})).status() == Status::invalid_argument);
  }
}

TEST_CASE("infllm: what is taken back, forked, saved or computed on threads is the same", "[retrieve][infllm]") {
  test::require_no_trace(small, coded, {50, 1, 1, 1, 4, 1, 1, 20, 1});
}

TEST_CASE("infllm: sums of attention in a file are numbers, and none is negative", "[retrieve][infllm]") {
  Feeder f(small, coded);
  auto second = make_cache<Cpu>(small, coded);
  for (const index_t n : {50, 1, 1, 1, 4, 1, 1, 20, 1}) {
    f.forward(n);
    if (f.cache().length() <= 60) continue;
    const auto pattern = std::as_bytes(f.cache().layers()[1].index[1].drawn.span().subspan(3, 6));
    const auto good = test::saved(f.cache());
    REQUIRE(load(*second, good) == Status::ok);
    const auto found = std::search(good.begin(), good.end(), pattern.begin(), pattern.end());
    REQUIRE(found != good.end());
    for (const float forged : {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      auto bytes = good;
      std::memcpy(bytes.data() + (found - good.begin()), &forged, 4);
      Checksum sum;
      sum.add(std::span(bytes).first(bytes.size() - 8));
      const std::uint64_t s = sum.value();
      std::memcpy(bytes.data() + bytes.size() - 8, &s, 8);
      REQUIRE(load(*second, bytes) == Status::corrupt_data);
    }
  }
}

TEST_CASE("infllm: what a step lacks or has no room for is refused, and nothing is lost", "[retrieve][infllm]") {
  Feeder f(small, recipe(usual, position::Reindex{}, evict::H2O{.heavy = 30, .recent = 20}));
  f.forward(60);
  const test::Tokens t(small, 3, f.random);
  auto& cache = f.cache();
  const auto drawn = [&] {
    std::vector<float> all;
    for (const auto& i : cache.layers()[0].index) all.insert(all.end(), i.drawn.begin(), i.drawn.end());
    return all;
  };
  const auto before = drawn();
  REQUIRE(cache.append(f.rig.ctx, 0, t.keys(small), t.values(small)) == Status::ok);
  std::vector<float> mass(static_cast<std::size_t>(cache.total_slots(0))), out(6 * 3 * 16);
  const AttentionView attention{cache.ragged(0, mass.data()), 3};
  REQUIRE(cache.attend(f.rig.ctx, 0, t.queries(small), dense_view(out.data(), 6, 3, 16), {.mass = cache.ragged(0, mass.data())}) == Status::ok);
  REQUIRE(cache.step(f.rig.ctx, 0, StepInputs{.attention = attention}) == Status::missing_input);
  auto newest = t.queries(small);
  newest.data += 2 * newest.stride[1], newest.extent[1] = 1;
  REQUIRE(cache.step(f.rig.ctx, 0, StepInputs{.attention = attention, .queries = newest}) == Status::missing_input);
  REQUIRE(std::string(cache.missing(0, StepInputs{.attention = attention})) == "queries");
  for (long more = 0;; ++more) {
    f.rig.memory.refuse_from = f.rig.memory.requests + more;
    const Status s = cache.step(f.rig.ctx, 0, StepInputs{.attention = attention, .queries = t.queries(small)});
    f.rig.memory.refuse_from = -1;
    if (s == Status::ok) break;
    REQUIRE(s == Status::out_of_memory);
    REQUIRE(cache.pending() == 3);
    REQUIRE(drawn() == before);
  }
  REQUIRE(drawn().size() == static_cast<std::size_t>(3 * cache.total_slots(0)));

  std::vector<std::byte> exact(cache.workspace_bytes(54, 1));
  f.rig.ctx = Context<Cpu>(exact);
  const test::Tokens one(small, 1, f.random);
  REQUIRE(cache.truncate(60) == Status::ok);
  REQUIRE(cache.forward(f.rig.ctx, 0, one.queries(small), one.keys(small), one.values(small), dense_view(out.data(), 6, 1, 16), {}, Phase::automatic, StepInputs{}) ==
          Status::ok);
  f.rig.ctx = Context<Cpu>(std::span(exact).first(256));
  REQUIRE(cache.forward(f.rig.ctx, 1, one.queries(small), one.keys(small), one.values(small), dense_view(out.data(), 6, 1, 16), {}, Phase::automatic, StepInputs{}) ==
          Status::workspace_too_small);

  // Heads of different lengths have no block in common.
  const budget::Ada<evict::SnapKV> ada{.policy = {.tokens = 40, .window = 4}, .floor = 0.1};
  retrieve::InfLlm one_block = usual;
  one_block.blocks = 1;
  Feeder ragged(small, recipe(one_block, position::Reindex{}, ada));
  ragged.forward(60);
  auto& r = ragged.cache();
  REQUIRE(r.slots(0, 0) != r.slots(0, 1));
  const index_t slots = r.slots(0, 0);
  REQUIRE(r.append(ragged.rig.ctx, 0, one.keys(small), one.values(small)) == Status::ok);
  REQUIRE(r.attend(ragged.rig.ctx, 0, one.queries(small), dense_view(out.data(), 6, 1, 16)) == Status::not_supported);
  REQUIRE(r.truncate(60) == Status::ok);
  REQUIRE(r.slots(0, 0) == slots);
}

TEST_CASE("infllm: any calls in any order, against a twin that keeps everything in double", "[retrieve][infllm]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  const retrieve::InfLlm stage{.block = 5, .blocks = 3, .init = 3, .local = 9, .representatives = 2, .chunk = 20};
  for (std::uint32_t seed = 1; seed < 4; ++seed) {
    test::exercise(shape, recipe(stage, position::Reindex{}), seed, 14, 0.0025);
    test::exercise(shape, recipe(stage, position::Rerotate{}, evict::H2O{.heavy = 30, .recent = 20}, quant::Kivi<4>{.group_size = 8, .residual_window = 8}), seed, 14, 6.0);
    test::exercise(shape, recipe(stage, position::Rerotate{}, evict::SnapKV{.tokens = 40, .window = 8}), seed, 14, 0.0025);
  }
}
