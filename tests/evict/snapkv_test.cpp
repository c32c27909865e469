#include <catch2/catch.hpp>

#include <evict/driver.hpp>
#include <kvcondense/evict/snapkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// The scores that a pipeline would select by.
template <class Pipeline>
std::vector<std::vector<float>> scores(const Pipeline& p, const CacheShape& shape, index_t n, index_t rows, index_t window,
                                       const PerToken& mass) {
  std::vector<float> m, out(at(shape.kv_heads * n));
  Ints offset{0};
  std::vector<evict::Protected> shield(at(shape.kv_heads), evict::Protected{0, window});
  for (index_t h = 0; h < shape.kv_heads; ++h) {
    offset.push_back((h + 1) * n);
    for (index_t j = 0; j < n; ++j) m.push_back(static_cast<float>(mass(h, j)));
  }
  StepView<Cpu> view;
  view.shape = shape;
  view.offset = offset.data();
  view.inputs.attention = {{m.data(), offset.data(), shape.kv_heads}, rows};
  std::vector<std::byte> memory(p.workspace_bytes(shape, offset.back()) + Scratch::align);
  Scratch s(memory);
  Context<Cpu> ctx;
  const RaggedView<float> into{out.data(), offset.data(), shape.kv_heads};
  REQUIRE(p.source.score(ctx, view, {}, into, s) == Status::ok);
  REQUIRE(p.pool.run(ctx, view, shield.data(), into, s) == Status::ok);
  std::vector<std::vector<float>> result;
  for (index_t h = 0; h < shape.kv_heads; ++h) result.emplace_back(into.row(h), into.row(h) + n - window);
  return result;
}

void require_scores(const std::vector<float>& got, const nlohmann::json& want) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == Approx(want[i].get<double>()).margin(2e-5));
}

}  // namespace

TEST_CASE("snapkv: scores and kept sets equal the oracle for both pools", "[evict][snapkv]") {
  const auto oracle = eviction_oracle("snapkv");
  const FX1 fx;
  const bool average = GENERATE(true, false);
  CAPTURE(average);
  const evict::SnapKV policy{.tokens = oracle["params"]["max_capacity"],
                             .window = oracle["params"]["window"],
                             .kernel = oracle["params"]["kernel"],
                             .pool = average ? prim::Pool::average : prim::Pool::maximum};
  const auto want = oracle[average ? "avg_pool" : "max_pool"];

  // Per kv head: the mean over the group comes before pooling.
  auto d = drive(fx.shape, policy);
  const PerToken mass = fx.mass(6, 8, with_new(d.held, 0, 8));
  REQUIRE(d.step(8, Phase::prefill_end, mass) == Status::ok);
  const auto grouped = scores(policy.pipeline(), fx.shape, 8, 2, 2, mass);
  for (index_t g = 0; g < 2; ++g) {
    require_scores(grouped[at(g)], want["per_kv_head_group_mean"]["scores"][at(g)]);
    REQUIRE(d.held[at(g)] == want["per_kv_head_group_mean"]["kept"][at(g)].get<Ints>());
  }

  // Per query head: as many kv heads as query heads.
  CacheShape mha = fx.shape;
  mha.kv_heads = 4;
  auto q = drive(mha, policy);
  const Ints prompt{0, 1, 2, 3, 4, 5, 6, 7};
  const PerToken per_query = [&](index_t h, index_t t) {
    return fx.probabilities(h, 6, prompt)[at(t)] + fx.probabilities(h, 7, prompt)[at(t)];
  };
  const auto raw = eviction_oracle("block_lse_column_sums")["last_two_rows_only"];
  for (index_t h = 0; h < 4; ++h)
    for (index_t t = 0; t < 8; ++t) REQUIRE(per_query(h, t) == Approx(raw[at(h)][at(t)].get<double>()));
  const auto got = scores(policy.pipeline(), mha, 8, 2, 2, per_query);
  REQUIRE(q.step(8, Phase::prefill_end, per_query) == Status::ok);
  for (index_t h = 0; h < 4; ++h) {
    require_scores(got[at(h)], want["per_query_head"]["scores"][at(h)]);
    REQUIRE(q.held[at(h)] == want["per_query_head"]["kept"][at(h)].get<Ints>());
  }
}

TEST_CASE("snapkv: generated tokens stay", "[evict][snapkv]") {
  const FX1 fx;
  auto d = drive(fx.shape, evict::SnapKV{.tokens = 5, .window = 2, .kernel = 3});
  REQUIRE(d.step(8, Phase::prefill_end, fx.mass(6, 8, with_new(d.held, 0, 8))) == Status::ok);
  for (index_t t = 8; t < 12; ++t) REQUIRE(d.step(1, Phase::decode, [](index_t, index_t) { return 0.1; }) == Status::ok);
  for (const auto& head : d.held) REQUIRE(head.size() == 9);
}

TEST_CASE("snapkv: windows, budgets and kernels out of range are refused", "[evict][snapkv]") {
  using S = evict::SnapKV;
  REQUIRE(S{.tokens = 32, .window = 32}.validate({}) == Status::invalid_argument);
  REQUIRE(S{.window = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(S{.kernel = 4}.validate({}) == Status::invalid_argument);
  REQUIRE(S{.kernel = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(S{.tokens = 33, .window = 32, .kernel = 1}.validate({}) == Status::ok);
}
