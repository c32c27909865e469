#include <retrieve/methods.hpp>
#include <retrieve/rig.hpp>

using namespace kvcondense;

namespace {

struct NoKeys {
  static constexpr Descriptor about{"mine", Stage::retrieve, "none"};
  auto pipeline() const { return retrieve::Quest{}.pipeline(); }
  Status validate(const CacheShape&) const { return Status::ok; }
};

struct WrongStage : retrieve::Quest {
  static constexpr Descriptor about{"mine", Stage::evict, "none"};
};

/// A method of a user: every fourth page, whatever is in it.
struct EveryFourthPage {
  struct Stride {
    template <Backend B>
    bool takes_all(const retrieve::ReadView<B>&, index_t, index_t) const {
      return false;
    }
    std::size_t workspace_bytes(const CacheShape&, index_t, index_t) const { return 0; }
    template <Backend B>
    Status run(Context<B>&, const retrieve::ReadView<B>&, RaggedView<const float> scores, const retrieve::UnitLists& lists, Scratch&) const {
      for (index_t r = 0; r < scores.heads; ++r) {
        lists.count[r] = 0;
        for (index_t u = 0; u < scores.length(r); u += 4) lists.units.row(r)[lists.count[r]++] = static_cast<std::int32_t>(u);
      }
      return Status::ok;
    }
  };
  static constexpr Descriptor about{"every_fourth_page", Stage::retrieve, "a test"};
  static constexpr retrieve::KeyState keys = retrieve::KeyState::rotated;
  constexpr auto pipeline() const {
    using namespace retrieve;
    return Pipeline{Pages{2},  MeanKey{2}, EachQuery{}, PlainScore{}, ByHeads{Heads::group_mean}, Stride{},
                    KeepEnds{0, 1}, EveryCall{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

static_assert(!retrieve::RetrievalPolicy<NoKeys, Cpu>);
static_assert(!retrieve::RetrievalPolicy<WrongStage, Cpu>);
static_assert(retrieve::RetrievalPolicy<EveryFourthPage, Cpu>);
static_assert(retrieve::check_retrieval_policy<EveryFourthPage, Cpu>());

}  // namespace

TEST_CASE("retrieval policy: one of a user runs", "[retrieve][policy]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "quest");
  test::RetrieveRig<EveryFourthPage> rig(oracle["K"], oracle["V"], 2, 0.5f, EveryFourthPage{});
  const auto seen = rig.attend(test::floats(oracle["Q"]));
  for (const auto& slots : seen.slots) REQUIRE(slots == std::vector<int>{0, 1, 8, 9, 16, 17});
}

TEST_CASE("retrieval policy: what a method needs is known to its cache", "[retrieve][policy]") {
  STATIC_REQUIRE(needs<RecipeOf<retrieve::Quest>>.empty());
  STATIC_REQUIRE(needs<RecipeOf<retrieve::LServe>> == Inputs(Input::queries));
  STATIC_REQUIRE(needs<RecipeOf<evict::H2O, retrieve::TriForce>> == (Input::attention | Input::queries));
  REQUIRE(make_cache<Cpu>(CacheShape{}, recipe(retrieve::LServe{}))->capabilities().needs == Inputs(Input::queries));
  REQUIRE(make_cache<Cpu>(CacheShape{}, recipe(retrieve::LServe{.interval = 1}))->capabilities().needs.empty());
  REQUIRE(make_cache<Cpu>(CacheShape{}, recipe(retrieve::Quest{}))->capabilities().reads_part);
}

TEST_CASE("retrieval policy: fields that do not fit are refused", "[retrieve][policy]") {
  const auto status = [](auto stage) { return make_cache<Cpu>(CacheShape{}, recipe(stage)).status(); };
  using namespace retrieve;
  REQUIRE(status(Quest{.page = 0}) == Status::invalid_argument);
  REQUIRE(status(Quest{.page = 16, .tokens = 8}) == Status::invalid_argument);
  REQUIRE(status(LServe{.page = 64, .part = 24}) == Status::invalid_argument);
  REQUIRE(status(LServe{.interval = 0}) == Status::invalid_argument);
  REQUIRE(status(Kinetics{.blocks = 0}) == Status::invalid_argument);
  REQUIRE(status(TriForce{.chunk = 8, .tokens = 15}) == Status::invalid_argument);
  REQUIRE(status(ShadowSelect{.outliers = -1}) == Status::invalid_argument);
}
