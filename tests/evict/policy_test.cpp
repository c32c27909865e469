#include <catch2/catch.hpp>

#include <evict/driver.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keep_all.hpp>
#include <kvcondense/evict/policy.hpp>

using namespace kvcondense;

namespace {

struct NoValidate {
  static constexpr Descriptor about{"mine", Stage::evict, "none"};
  static constexpr Inputs needs = Input::attention;
  auto pipeline() const { return evict::H2O{}.pipeline(); }
};

struct Blind : evict::H2O {
  static constexpr Inputs needs{};
};

struct WrongStage : evict::H2O {
  static constexpr Descriptor about{"mine", Stage::quant, "none"};
};

/// A method of a user: the newest heavy slots of every third layer, made of the library's blocks.
struct EveryThirdLayer {
  struct Allocate {
    constexpr bool uses_scores() const { return false; }
    std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }
    template <Backend B>
    Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const evict::Protected*, index_t* budget,
               Scratch&) const {
      for (index_t h = 0; h < view.heads(); ++h) budget[h] = view.layer % 3 == 0 ? 2 : view.slots(h);
      return Status::ok;
    }
  };
  static constexpr Descriptor about{"every_third_layer", Stage::evict, "a test"};
  static constexpr Inputs needs = Input::attention;

  auto pipeline() const { return evict::H2O{.heavy = 1, .recent = 1}.pipeline().with_allocate(Allocate{}); }
  Status validate(const CacheShape&) const { return Status::ok; }
};

static_assert(evict::check_eviction_policy<EveryThirdLayer, Cpu>());
static_assert(evict::check_eviction_policy<EveryThirdLayer, Cuda>());

}  // namespace

TEST_CASE("policy: the concept tells policies from others", "[evict][policy]") {
  STATIC_REQUIRE(evict::EvictionPolicy<evict::H2O, Cpu>);
  STATIC_REQUIRE(evict::EvictionPolicy<evict::H2O, Cuda>);
  STATIC_REQUIRE(evict::EvictionPolicy<budget::Ada<evict::H2O>, Cpu>);
  STATIC_REQUIRE(evict::EvictionPolicy<EveryThirdLayer, Cpu>);
  STATIC_REQUIRE(!evict::EvictionPolicy<int, Cpu>);
  STATIC_REQUIRE(!evict::EvictionPolicy<NoValidate, Cpu>);
  STATIC_REQUIRE(!evict::EvictionPolicy<Blind, Cpu>);
  STATIC_REQUIRE(!evict::EvictionPolicy<WrongStage, Cpu>);
}

TEST_CASE("policy: one of a user's own blocks runs like the library's", "[evict][policy]") {
  for (index_t layer = 0; layer < 4; ++layer) {
    auto d = test::drive({.layers = 4}, EveryThirdLayer{});
    d.layer = layer;
    REQUIRE(d.step(5, Phase::prefill_end, [](index_t, index_t t) { return t == 1 ? 1.0 : 0.1; }) == Status::ok);
    REQUIRE(d.held[0] == (layer % 3 == 0 ? test::Ints{1, 4} : test::Ints{0, 1, 2, 3, 4}));
  }
}
