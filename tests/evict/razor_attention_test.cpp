#include <cmath>
#include <tuple>

#include <evict/properties.hpp>
#include <kvcondense/evict/razor_attention.hpp>
#include <kvcondense/position/reindex.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

using evict::RazorAttention;

struct Tables {
  std::vector<float> induction, echo;
  RazorAttention policy(index_t layers, index_t heads, double a, double b) const {
    RazorAttention p;
    p.induction_part = a, p.echo_part = b;
    p.induction = {induction.data(), layers, heads}, p.echo = {echo.data(), layers, heads};
    return p;
  }
};

}  // namespace

TEST_CASE("razor_attention: parts of heads are rounded, halves to even",
          "[evict][razor_attention]") {
  using R = evict::RazorAttention;
  for (const auto& [part, heads, want] : {std::tuple{0.25, 10, 2},
                                          {0.25, 6, 2},
                                          {0.25, 14, 4},
                                          {0.14, 32, 4},
                                          {0.01, 8, 1},
                                          {0.0, 8, 0},
                                          {1.0, 8, 8}}) {
    CAPTURE(part, heads);
    REQUIRE(R::top(part, heads) == want);
  }
}

TEST_CASE("razor_attention: the oracle's retrieval heads and buffer lengths", "[evict][razor_attention]") {
  const auto o = eviction_oracle("razor");
  Tables t;
  for (const auto& row : o["head_selection"]["induction_scores"])
    for (const float x : row) t.induction.push_back(x);
  t.echo.assign(8, 0.0f);
  const auto p = t.policy(2, 4, o["head_selection"]["ratio"], 0).pipeline();
  for (index_t l = 0; l < 2; ++l) {
    Ints full;
    for (index_t h = 0; h < 4; ++h)
      if (p.allocate.full(l, h)) full.push_back(h);
    REQUIRE(full == o["head_selection"]["selected"][at(l)].get<Ints>());
  }
  for (const auto& b : o["buffer_length"])
    REQUIRE(evict::RecentShare{b["S0"], b["C"]}.of(b["N"].get<index_t>()) == b["L_h"].get<index_t>());
}

TEST_CASE("razor_attention: heads of either table are full, the others hold ends and a mean", "[evict][razor_attention]") {
  const CacheShape shape{.layers = 2, .q_heads = 8, .kv_heads = 4, .head_dim = 16, .dtype = DType::f32};
  Tables t{{.9f, .1f, .3f, .2f, .5f, .8f, .05f, .4f}, {0, 0, 0, .7f, 0, 0, .9f, 0}};
  auto policy = t.policy(2, 4, 0.25, 0.01);  // heads (0, 0), (1, 1); and (1, 2)
  policy.sinks = 2, policy.least = 10, policy.divisor = 8;
  CacheRig r(shape, recipe(policy), 256, 64);
  std::mt19937 random(3);
  for (int chunk = 0; chunk < 5; ++chunk)
    for (index_t l = 0; l < 2; ++l) {
      const Tokens tokens(shape, 32, random);
      std::vector<float> out(at(8 * 32 * 16));
      REQUIRE(r.cache.forward(r.ctx, l, tokens.queries(shape), tokens.keys(shape), tokens.values(shape),
                              dense_view(out.data(), 8, 32, 16), {}, Phase::prefill_chunk) == Status::ok);
    }
  for (index_t l = 0; l < 2; ++l)
    for (index_t h = 0; h < 4; ++h) {
      const bool full = (l == 0 && h == 0) || (l == 1 && (h == 1 || h == 2));
      const auto& head = r.cache.layers()[l].heads[h];
      REQUIRE(r.cache.slots(l, h) == (full ? 160 : 2 + 20));  // 160 / 8 = 20
      REQUIRE(head.summary.count() == (full ? 0 : 160 - 22));
      REQUIRE(r.cache.token(l, h, 1) == 1);
    }
  REQUIRE(r.cache.report().bytes() == r.memory.live_bytes);
}

TEST_CASE("razor_attention: the mean is better than nothing", "[evict][razor_attention]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 32, .dtype = DType::f32};
  const Tables t{{0}, {0}};
  double error[2] = {};
  for (const bool compensate : {false, true}) {
    auto policy = t.policy(1, 1, 0, 0);
    policy.sinks = 2, policy.least = 14, policy.compensate = compensate;
    CacheRig r(shape, recipe(policy), 256, 128);
    std::mt19937 random(3);
    const Tokens tokens(shape, 128, random, 0.7f);
    REQUIRE(r.cache.append(r.ctx, 0, tokens.keys(shape), tokens.values(shape)) == Status::ok);
    const Tokens query(shape, 1, random);
    const auto attend = [&] {
      std::vector<float> out(64);
      REQUIRE(r.cache.attend(r.ctx, 0, query.queries(shape), dense_view(out.data(), 2, 1, 32)) == Status::ok);
      return out;
    };
    const auto full = attend();
    REQUIRE(r.cache.step(r.ctx, 0) == Status::ok);
    REQUIRE(r.cache.slots(0, 0) == 27);  // 2 + 128 / 5
    const auto less = attend();
    for (std::size_t d = 0; d < 64; ++d) error[compensate] += std::abs(full[d] - less[d]);
  }
  REQUIRE(error[1] < 0.5 * error[0]);
}

TEST_CASE("razor_attention: tables and fields that cannot be are refused", "[evict][razor_attention]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 4, .head_dim = 16};
  REQUIRE(RazorAttention{}.validate(shape) == Status::missing_input);
  const Tables t{std::vector<float>(8, 0.5f), std::vector<float>(8, 0.5f)};
  const auto with = [&](auto change) {
    auto p = t.policy(2, 4, 0.14, 0.01);
    change(p);
    return p.validate(shape);
  };
  REQUIRE(with([](auto&) {}) == Status::ok);
  REQUIRE(with([](auto& p) { p.echo = {}; }) == Status::missing_input);
  REQUIRE(with([](auto& p) { p.induction.layers = 1; }) == Status::shape_mismatch);
  REQUIRE(with([](auto& p) { p.echo.layers = 1; }) == Status::shape_mismatch);
  const std::vector<float> nan(8, NAN);
  REQUIRE(with([&](auto& p) { p.induction.data = nan.data(); }) == Status::invalid_argument);
  REQUIRE(with([&](auto& p) { p.echo.data = nan.data(); }) == Status::invalid_argument);
  REQUIRE(with([](auto& p) { p.induction_part = 1.5; }) == Status::invalid_argument);
  REQUIRE(with([](auto& p) { p.echo_part = -0.1; }) == Status::invalid_argument);
  REQUIRE(with([](auto& p) { p.sinks = -1; }) == Status::invalid_argument);
  REQUIRE(with([](auto& p) { p.least = 0; }) == Status::invalid_argument);
  REQUIRE(with([](auto& p) { p.divisor = 0; }) == Status::invalid_argument);
  REQUIRE(make_cache<Cpu>(shape, recipe(t.policy(2, 4, 0.14, 0.01), position::Reindex{})).status() == Status::incompatible);
}
