#include <retrieve/methods.hpp>
#include <retrieve/rig.hpp>
#include <kvcondense/retrieve/erased.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

namespace {

/// A stage whose pipeline is only known at run time.
template <class P>
struct Erased {
  [[maybe_unused]] static constexpr Descriptor about{"erased", Stage::retrieve, "a test"};
  [[maybe_unused]] static constexpr retrieve::KeyState keys = P::keys;
  P base{};
  retrieve::AnyPipeline pipeline() const { return retrieve::AnyPipeline(base.pipeline()); }
  Status validate(const CacheShape& shape) const { return base.validate(shape); }
};

constexpr CacheShape shape{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 16};

template <class P>
std::vector<float> outputs(const P& stage) {
  test::CacheRig<RecipeOf<P>> rig(shape, recipe(stage), 256, 100);
  std::mt19937 random(4);
  std::vector<float> all;
  for (int pass = 0; pass < 12; ++pass) {
    const test::Tokens t(shape, pass == 0 ? 100 : pass == 5 ? 3 : 1, random, 2.0f);
    std::vector<float> out(static_cast<std::size_t>(4 * t.n * 16));
    REQUIRE(rig.cache.forward(rig.ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 4, t.n, 16), {},
                              Phase::automatic, StepInputs{}) == Status::ok);
    all.insert(all.end(), out.begin(), out.end());
    if (pass == 8) REQUIRE(rig.cache.truncate(106) == Status::ok);
  }
  return all;
}

}  // namespace

TEST_CASE("erased retrieval: every method does the same behind one type", "[retrieve][erased]") {
  test::for_retrieval_methods([](const auto& method) {
    using P = std::remove_cvref_t<decltype(method)>;
    CAPTURE(P::about.word);
    const auto typed = outputs(method);
    REQUIRE(typed == outputs(Erased<P>{method}));
    REQUIRE(typed != outputs(retrieve::ReadAll{}));
  });
}

TEST_CASE("erased retrieval: an empty pipeline reads everything", "[retrieve][erased]") {
  REQUIRE_FALSE(retrieve::AnyPipeline{}.active());
  REQUIRE_FALSE(retrieve::AnyPipeline{}.holds());
  REQUIRE(outputs(Erased<retrieve::ReadAll>{}) == outputs(retrieve::ReadAll{}));
}
