#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/prefix_mass.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/snapkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

index_t sum(const Ints& x) { return std::accumulate(x.begin(), x.end(), index_t{0}); }

}  // namespace

TEST_CASE("prefix_mass: layers hold what the table says, in the mean exactly the budget", "[budget][prefix_mass]") {
  const float evicted[] = {0.6f, 0.1f, 0.5f, 1.0f};
  const CacheShape shape{.layers = 4};
  for (const index_t tokens : {30, 31, 40, 77, 500}) {
    Ints got;
    for (index_t l = 0; l < 4; ++l) {
      auto d = drive(shape, budget::PrefixMass{evict::SnapKV{.tokens = 20, .window = 4}, LayerTable{evicted, 4}});
      d.layer = l;
      REQUIRE(d.step(tokens, Phase::prefill_end, [](index_t h, index_t t) { return number(1, h, t); }) == Status::ok);
      got.push_back(static_cast<index_t>(d.held[0].size()));
      REQUIRE(got.back() == d.budget[0]);
    }
    CAPTURE(tokens, got);
    REQUIRE(sum(got) == 4 * 20);
    REQUIRE(got[3] == 4);  // the window stays
    REQUIRE((got[1] > got[2] && got[2] >= got[0] && got[1] <= tokens));
    if (tokens == 500) REQUIRE(got == Ints{17, 38, 21, 4});  // 76 * 0.4, 0.9, 0.5 of 1.8
  }
}

TEST_CASE("prefix_mass: with the budget it was measured at, layers keep what the table says", "[budget][prefix_mass]") {
  const auto oracle = eviction_oracle("prefixkv");
  const auto forget = oracle["forget"].get<Ints>();
  std::vector<float> evicted;
  for (const index_t f : forget) evicted.push_back(static_cast<float>(f) / 10.0f);
  for (index_t l = 0; l < 3; ++l) {
    auto d = drive({.layers = 3}, budget::PrefixMass{evict::SnapKV{.tokens = 6, .window = 1}, LayerTable{evicted.data(), 3}});
    d.layer = l;
    REQUIRE(d.step(10, Phase::prefill_end, [](index_t h, index_t t) { return number(1, h, t); }) == Status::ok);
    REQUIRE(static_cast<index_t>(d.held[0].size()) == 10 - forget[at(l)]);
  }
}

TEST_CASE("prefix_mass: keeps the promises", "[budget][prefix_mass]") {
  const float evicted[] = {0.6f, 0.1f, 0.5f, 0.3f};
  const LayerTable table{evicted, 4};
  check_promises(budget::PrefixMass{evict::Knorm{.tokens = 24, .recent = 4}, table},
                 budget::PrefixMass{evict::Knorm{.tokens = 400, .recent = 4}, table});
}

TEST_CASE("prefix_mass: what does not fit the model is refused", "[budget][prefix_mass]") {
  float evicted[] = {0.6f, 0.1f};
  const budget::PrefixMass p{evict::Knorm{}, LayerTable{evicted, 2}};
  REQUIRE(p.validate({.layers = 2}) == Status::ok);
  REQUIRE(p.validate({.layers = 3}) == Status::shape_mismatch);
  REQUIRE(budget::PrefixMass<evict::Knorm>{}.validate({.layers = 2}) == Status::missing_input);
  REQUIRE(std::string(budget::PrefixMass<evict::Knorm>{}.missing()) == "evicted");
  for (const float bad : {-0.1f, 1.1f, std::nanf("")}) {
    evicted[1] = bad;
    REQUIRE(p.validate({.layers = 2}) == Status::invalid_argument);
  }
  evicted[0] = evicted[1] = 1.0f;
  REQUIRE(p.validate({.layers = 2}) == Status::invalid_argument);
}
