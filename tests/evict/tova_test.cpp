#include <limits>

#include <catch2/catch.hpp>

#include <evict/driver.hpp>
#include <kvcondense/evict/tova.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("tova: one kept set per layer equals the oracle through prefill and decode", "[evict][tova]") {
  const auto oracle = eviction_oracle("tova");
  const FX1 fx;
  auto d = drive(fx.shape, evict::Tova{.tokens = oracle["params"]["cache_size"]});
  const auto mean = [&](const PerToken& mass, index_t token) { return (mass(0, token) + mass(1, token)) / 4; };
  PerToken mass = fx.mass(7, 8, with_new(d.held, 0, 8));
  for (index_t t = 0; t < 8; ++t)
    REQUIRE(mean(mass, t) == Approx(oracle["prefill_last_row_mean"][at(t)].get<double>()));
  REQUIRE(d.step(8, Phase::prefill_end, mass) == Status::ok);
  for (const auto& head : d.held) REQUIRE(head == oracle["prefill_kept"].get<Ints>());
  for (const auto& step : oracle["steps"]) {
    const index_t t = step["token"];
    const Rows visible = with_new(d.held, t, 1);
    REQUIRE(visible[0] == step["visible"].get<Ints>());
    mass = fx.mass(t, t + 1, visible);
    for (std::size_t j = 0; j < visible[0].size(); ++j)
      REQUIRE(mean(mass, visible[0][j]) == Approx(step["mean_attn"][j].get<double>()));
    REQUIRE(d.step(1, Phase::decode, mass) == Status::ok);
    for (const auto& head : d.held) REQUIRE(head == step["kept"].get<Ints>());
  }
}

TEST_CASE("tova: heads of different lengths have no common set", "[evict][tova]") {
  auto d = drive({.q_heads = 2, .kv_heads = 2}, evict::Tova{.tokens = 2});
  d.held[0] = {0, 1, 2};
  REQUIRE(d.step(1, Phase::decode, [](index_t, index_t) { return 0.1; }) == Status::not_supported);
}

TEST_CASE("tova: what one head finds counts for all of them", "[evict][tova]") {
  auto d = drive({.q_heads = 6, .kv_heads = 3}, evict::Tova{.tokens = 3});
  const auto bad = [](index_t, index_t token) { return token == 1 ? std::numeric_limits<double>::quiet_NaN() : 0.1 * static_cast<double>(token + 1); };
  REQUIRE(d.step(5, Phase::prefill_end, bad) == Status::ok);
  for (const auto& head : d.held) REQUIRE(head == Ints{2, 3, 4});
  REQUIRE(d.nan == 3);
  REQUIRE(d.step(2, Phase::decode, bad) == Status::ok);
  for (const auto& head : d.held) REQUIRE(head == Ints{4, 5, 6});
  REQUIRE(d.nan == 0);
}

TEST_CASE("tova: a budget that holds nothing is refused", "[evict][tova]") {
  REQUIRE(evict::Tova{.tokens = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::Tova{.tokens = 1}.validate({}) == Status::ok);
}
