#include <algorithm>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/evict/chunkkv.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using prim::ChunkReduce;

TEST_CASE("chunkkv: chunk scores and kept chunks equal the oracle", "[evict][chunkkv]") {
  const auto oracle = eviction_oracle("chunkkv");
  const auto& token_scores = oracle["scores"];
  const index_t chunk = oracle["chunk_length"], keep = oracle["n_chunks_kept"];
  const auto n = static_cast<index_t>(token_scores[0].size());
  const CacheShape shape{.q_heads = 2, .kv_heads = 2};
  // The oracle protects no window; the rest of the pipeline is the method's.
  const auto p = evict::ChunkKV{.window = 1, .chunk = chunk}.pipeline();
  const evict::Pipeline bare{p.source, p.pool, evict::NoProtect{}, evict::Absolute{keep * chunk}, p.select, p.trigger};
  const PerToken mass = [&](index_t h, index_t t) { return token_scores[at(h)][at(t)].get<double>(); };
  Driver d(shape, bare);
  REQUIRE(d.step(n, Phase::prefill_end, mass) == Status::ok);
  for (const Ints& head : d.held) REQUIRE(head == oracle["kept"].get<Ints>());

  std::vector<float> m, out(at(2 * n));
  for (index_t h = 0; h < 2; ++h)
    for (index_t t = 0; t < n; ++t) m.push_back(static_cast<float>(mass(h, t)));
  const index_t offset[] = {0, n, 2 * n};
  StepView<Cpu> view;
  view.shape = shape, view.offset = offset, view.inputs.attention = {{m.data(), offset, 2}, 1};
  Context<Cpu> ctx;
  Scratch none;
  REQUIRE(bare.source.score(ctx, view, {}, {out.data(), offset, 2}, none) == Status::ok);
  REQUIRE(bare.pool.run(ctx, view, nullptr, {out.data(), offset, 2}, none) == Status::ok);
  for (index_t h = 0; h < 2; ++h)
    for (index_t t = 0; t < n; ++t)
      REQUIRE(out[at(h * n + t)] ==
              Approx(oracle["chunk_scores_sum_heads_mean_tokens"][at(t / chunk)].get<double>()).margin(2e-5));
}

TEST_CASE("chunkkv: in a cache, every group and head size keeps what the plain formula keeps", "[evict][chunkkv][cache]") {
  const index_t dim = GENERATE(64, 80, 128), group = GENERATE(1, 3, 4, 7);
  CAPTURE(dim, group);
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim, .dtype = DType::f32};
  const index_t n = 60, window = 5, chunk = 4, budget = 31;  // 13 whole chunks and one of three slots
  auto cache = make_cache<Cpu>(shape, recipe(evict::ChunkKV{.tokens = budget, .window = window, .chunk = chunk}));
  REQUIRE(cache);
  std::mt19937 random(3);
  const Tokens t(shape, n, random);
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(n, n)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::vector<float> out(at(shape.q_heads * n * dim));
  REQUIRE(cache->forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape),
                         dense_view(out.data(), shape.q_heads, n, dim)) == Status::ok);
  std::vector<double> score(at(n));
  for (index_t h = 0; h < shape.q_heads; ++h) {
    std::vector<NaiveSlot> slots(at(n));
    for (index_t j = 0; j < n; ++j) {
      for (index_t d = 0; d < dim; ++d) slots[at(j)].k.push_back(t.keys(shape)(h / group, j, d));
      slots[at(j)].v.push_back(0.0);
    }
    for (index_t i = n - window; i < n; ++i) {
      std::vector<double> q;
      for (index_t d = 0; d < dim; ++d) q.push_back(t.queries(shape)(h, i, d));
      naive_attention(q, slots, i + 1, 1.0 / std::sqrt(static_cast<double>(dim)), 1, &score);
    }
  }
  std::vector<std::pair<double, index_t>> chunks;
  for (index_t c = 0; c * chunk < n - window; ++c) {
    const index_t end = std::min((c + 1) * chunk, n - window);
    chunks.emplace_back(-std::accumulate(score.begin() + c * chunk, score.begin() + end, 0.0) / static_cast<double>(end - c * chunk), c);
  }
  std::sort(chunks.begin(), chunks.end());
  Ints want;
  for (std::size_t i = 0; i < (budget - window) / chunk; ++i)
    for (index_t j = chunks[i].second * chunk; j < std::min((chunks[i].second + 1) * chunk, n - window); ++j) want.push_back(j);
  for (index_t j = n - window; j < n; ++j) want.push_back(j);
  std::sort(want.begin(), want.end());
  for (index_t g = 0; g < 2; ++g) {
    Ints kept;
    for (index_t s = 0; s < cache->slots(0, g); ++s) kept.push_back(cache->token(0, g, s));
    REQUIRE(kept == want);
  }
}

TEST_CASE("chunkkv: a last chunk that is not full counts as one, and only its mean is fair to it", "[evict][chunkkv]") {
  // Slots 0-2, 3-5, 6-8, 9; the window is slot 10.
  const PerToken mass = [](index_t, index_t t) { return t == 9 ? 0.5 : t >= 6 ? 0.3 : t >= 3 ? 0.2 : 0.1; };
  const ChunkReduce reduce = GENERATE(ChunkReduce::mean, ChunkReduce::sum);
  auto d = drive({}, evict::ChunkKV{.tokens = 9, .window = 1, .chunk = 3, .reduce = reduce});
  REQUIRE(d.step(11, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(d.budget[0] == 9);  // two chunks, and two places that a third does not fit in
  REQUIRE(d.held[0] == (reduce == ChunkReduce::mean ? Ints{6, 7, 8, 9, 10} : Ints{3, 4, 5, 6, 7, 8, 10}));
}

TEST_CASE("chunkkv: ties keep the chunks in front, generated tokens stay", "[evict][chunkkv]") {
  auto d = drive({.q_heads = 2, .kv_heads = 2}, evict::ChunkKV{.tokens = 7, .window = 1, .chunk = 3});
  const PerToken level = [](index_t, index_t) { return 0.25; };
  REQUIRE(d.step(20, Phase::prefill_end, level) == Status::ok);
  REQUIRE(d.held == Rows{{0, 1, 2, 3, 4, 5, 19}, {0, 1, 2, 3, 4, 5, 19}});
  for (int i = 0; i < 9; ++i) REQUIRE(d.step(1, Phase::decode, level) == Status::ok);
  REQUIRE(d.held[0].size() == 16);
}

TEST_CASE("chunkkv: a NaN is left out of its chunk, one token and none are no trouble", "[evict][chunkkv]") {
  auto d = drive({}, evict::ChunkKV{.tokens = 3, .window = 1, .chunk = 2});
  REQUIRE(d.step(7, Phase::prefill_end, [](index_t, index_t t) { return t == 2 ? std::nan("") : t == 3 ? 0.9 : 0.1; }) == Status::ok);
  REQUIRE(d.held[0] == Ints{2, 3, 6});
  REQUIRE(d.nan == 1);
  for (const index_t n : {0, 1}) {
    auto small = drive({}, evict::ChunkKV{.tokens = 3, .window = 1, .chunk = 2});
    REQUIRE(small.step(n, Phase::prefill_end, [](index_t, index_t) { return 0.1; }) == Status::ok);
    REQUIRE(static_cast<index_t>(small.held[0].size()) == n);
  }
}

TEST_CASE("chunkkv: heads of different lengths have no common chunks", "[evict][chunkkv]") {
  auto d = drive({.q_heads = 2, .kv_heads = 2}, evict::ChunkKV{.tokens = 3, .window = 1, .chunk = 2});
  d.held[0] = {0, 1, 2};
  REQUIRE(d.step(4, Phase::prefill_end, [](index_t, index_t) { return 0.1; }) == Status::not_supported);
}

TEST_CASE("chunkkv: keeps the promises of a pipeline", "[evict][chunkkv]") {
  const evict::ChunkKV roomy{.tokens = 300, .window = 8};
  for (const index_t chunk : {1, 3, 10})
    check_promises(evict::ChunkKV{.tokens = 24, .window = 8, .chunk = chunk}, roomy, {.fills_budget = false});
  check_promises(evict::ChunkKV{.tokens = 24, .window = 8, .chunk = 1}, roomy);  // chunks of one fill it
}

TEST_CASE("chunkkv: windows, chunks and budgets out of range are refused", "[evict][chunkkv]") {
  using C = evict::ChunkKV;
  REQUIRE(C{.window = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(C{.chunk = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(C{.tokens = 41, .window = 32, .chunk = 10}.validate({}) == Status::invalid_argument);
  REQUIRE(C{.tokens = 42, .window = 32, .chunk = 10}.validate({}) == Status::ok);
}
