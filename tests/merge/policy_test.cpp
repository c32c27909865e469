#include <kvcondense/merge/policy.hpp>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/merge/d2o.hpp>

using namespace kvcondense;

namespace {

struct NoPipeline {
  static constexpr Descriptor about{"none", Stage::merge, "a user"};
  static constexpr Inputs needs{};
  Status validate(const CacheShape&) const { return Status::ok; }
};
struct OtherStage : merge::D2O {
  static constexpr Descriptor about{"other", Stage::evict, "a user"};
};
struct Own {
  static constexpr Descriptor about{"own", Stage::merge, "a user"};
  static constexpr Inputs needs{};
  auto pipeline() const {
    return merge::Pipeline{evict::NoScore{}, merge::NextKept{}, merge::EveryLink{}, merge::Weighted{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

}  // namespace

TEST_CASE("merge policy: the concept wants a stage, inputs, a pipeline and a check of its fields", "[merge][policy]") {
  STATIC_REQUIRE(merge::MergePolicy<merge::D2O>);
  STATIC_REQUIRE(merge::MergePolicy<Own>);
  STATIC_REQUIRE_FALSE(merge::MergePolicy<NoPipeline>);
  STATIC_REQUIRE_FALSE(merge::MergePolicy<OtherStage>);
  STATIC_REQUIRE_FALSE(merge::MergePolicy<int>);
  STATIC_REQUIRE(merge::check_merge_policy<Own, Cpu>());
}

TEST_CASE("merge policy: a place that turns keys wants a RoPE that fits", "[merge][policy]") {
  const CacheShape shape{.head_dim = 32};
  using merge::Place;
  REQUIRE(merge::check_place(Place::as_cached, {.rotary_dim = 64}, shape) == Status::ok);
  for (const Place place : {Place::pivot, Place::latest}) {
    REQUIRE(merge::check_place(place, {}, shape) == Status::ok);
    REQUIRE(merge::check_place(place, {.rotary_dim = 64}, shape) == Status::invalid_argument);
    REQUIRE(merge::check_place(place, {.base = 0.0}, shape) == Status::invalid_argument);
  }
}
