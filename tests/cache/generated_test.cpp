#include <support/byte_list.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>

#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/no_score.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/policy.hpp>

using namespace kvcondense;

namespace {

/// Fires when so many tokens were generated since the last prompt.
struct At {
  index_t generated = 0;
  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return view.generated == generated;
  }
};

/// Cuts heads to one slot then, so that a test sees when it was.
struct CutAt {
  static constexpr Descriptor about{"cut_at", Stage::evict, "test"};
  static constexpr Inputs needs{};
  index_t generated = 3;

  constexpr auto pipeline() const {
    return evict::Pipeline{evict::NoScore{}, evict::NoPool{}, evict::NoProtect{}, evict::Absolute{1}, evict::TopK{}, At{generated}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

const CacheShape shape{.head_dim = 8, .dtype = DType::f32};
using Recipe = decltype(recipe(CutAt{}));

struct Rig : test::CacheRig<Recipe> {
  std::mt19937 random{4};
  Rig() : CacheRig(shape, recipe(CutAt{}), 64, 32) {}

  index_t step(index_t n, Phase phase = Phase::automatic) { return step(cache, n, phase); }
  index_t step(Cache<Cpu, Recipe>& c, index_t n, Phase phase = Phase::automatic) {
    const test::Tokens t(shape, n, random);
    REQUIRE(c.append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(c.step(ctx, 0, StepInputs{}, phase) == Status::ok);
    return c.slots(0, 0);
  }
};

}  // namespace

TEST_CASE("generated: counts from the end of the prompt, however it came", "[cache][generated]") {
  Rig r;
  REQUIRE(r.step(5, Phase::prefill_chunk) == 5);
  REQUIRE(r.step(4, Phase::prefill_end) == 9);
  REQUIRE(r.step(1) == 10);
  REQUIRE(r.step(1) == 11);
  REQUIRE(r.step(1) == 1);
  REQUIRE(r.step(2, Phase::prefill_end) == 3);  // a second prompt
  REQUIRE(r.step(3) == 1);                      // accepted drafts
  Rig none;
  REQUIRE(none.step(3, Phase::decode) == 1);  // no prompt at all
}

TEST_CASE("generated: tokens that are taken back were not generated", "[cache][generated]") {
  Rig r;
  REQUIRE(r.step(6) == 6);
  REQUIRE(r.step(2) == 8);
  REQUIRE(r.cache.truncate(7) == Status::ok);
  REQUIRE(r.step(1) == 8);
  REQUIRE(r.cache.truncate(4) == Status::ok);  // into the prompt, which ends here now
  REQUIRE(r.step(2) == 6);
  REQUIRE(r.step(1) == 1);
}

TEST_CASE("generated: forks and snapshots go on counting", "[cache][generated]") {
  Rig r;
  REQUIRE(r.step(6) == 6);
  REQUIRE(r.step(2) == 8);
  auto copy = r.cache.fork();
  REQUIRE(copy.status() == Status::ok);
  REQUIRE(r.step(*copy, 1) == 1);
  test::ByteList file;
  REQUIRE(save(r.cache, file) == Status::ok);
  Rig loaded;
  REQUIRE(load(loaded.cache, file.bytes) == Status::ok);
  REQUIRE(loaded.step(1) == 1);
  r.cache.reset();
  REQUIRE(r.step(2) == 2);
  REQUIRE(r.step(2) == 4);
}
