#include <catch2/catch.hpp>

#include <evict/driver.hpp>
#include <kvcondense/evict/knorm.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("knorm: lengths and kept sets equal the oracle", "[evict][knorm]") {
  const auto oracle = eviction_oracle("knorm");
  const FX1 fx;
  auto d = drive(fx.shape, evict::Knorm{.tokens = oracle["params"]["n_kept"], .recent = 0});
  d.key = [&](index_t h, index_t t, index_t c) { return static_cast<float>(fx.k(h, t, c)); };
  REQUIRE(d.step(8, Phase::prefill_end) == Status::ok);
  for (index_t g = 0; g < 2; ++g) {
    REQUIRE(d.held[at(g)] == oracle["kept"][at(g)].get<Ints>());
    for (std::size_t j = 0; j < 4; ++j)
      REQUIRE(d.lane[0][at(g)][j] ==
              Approx(-oracle["norms"][at(g)][at(d.kept[at(g)][j])].get<double>()).epsilon(2e-5));
  }
}

TEST_CASE("knorm: a new key is measured once, and leaves when it is the longest", "[evict][knorm]") {
  auto d = drive({.head_dim = 1}, evict::Knorm{.tokens = 3, .recent = 1});
  const float lengths[] = {5, 1, 4, 2, 9, 3, 8};
  d.key = [&](index_t, index_t t, index_t) { return lengths[t]; };
  REQUIRE(d.step(4, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{1, 2, 3});  // 4 beside 1 and the newest, 2
  d.key = [&](index_t, index_t t, index_t) { return t < 4 ? 1e9f : lengths[t]; };  // old keys are not read again
  REQUIRE(d.step(1, Phase::decode) == Status::ok);
  REQUIRE(d.held[0] == Ints{1, 3, 4});
  REQUIRE(d.step(1, Phase::decode) == Status::ok);
  REQUIRE(d.held[0] == Ints{1, 3, 5});
}

TEST_CASE("knorm: a key with a bad number leaves first", "[evict][knorm]") {
  auto d = drive({.head_dim = 2}, evict::Knorm{.tokens = 2, .recent = 0});
  d.key = [](index_t, index_t t, index_t) { return t == 1 ? std::nanf("") : 1e9f; };
  REQUIRE(d.step(3, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 2});
}

TEST_CASE("knorm: without keys a step is refused", "[evict][knorm]") {
  auto d = drive({}, evict::Knorm{});
  REQUIRE(d.step(3, Phase::prefill_end) == Status::missing_input);
}

TEST_CASE("knorm: budgets without room are refused", "[evict][knorm]") {
  REQUIRE(evict::Knorm{.tokens = 4, .recent = 4}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::Knorm{.tokens = 4, .recent = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::Knorm{.tokens = 1, .recent = 0}.validate({}) == Status::ok);
}
