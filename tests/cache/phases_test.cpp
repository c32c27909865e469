#include <limits>

#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/snapkv.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 16};

template <class R>
struct Rig : test::CacheRig<R> {
  using test::CacheRig<R>::cache, test::CacheRig<R>::ctx;
  std::mt19937 random{5};
  explicit Rig(const R& r) : test::CacheRig<R>(shape, r, 256, 128) {}

  Status forward(index_t n, Phase phase = Phase::automatic) {
    test::Tokens t(shape, n, random);
    std::vector<float> out(t.q.size());
    // Views of numbers that may change go in as well as views of constants.
    return cache.forward(ctx, 0, t.queries(shape), dense_view(t.k.data(), shape.kv_heads, n, 16), t.values(shape),
                         dense_view(out.data(), 4, n, 16), {}, phase);
  }
  Status append(index_t n) {
    const test::Tokens t(shape, n, random);
    return cache.append(ctx, 0, t.keys(shape), t.values(shape));
  }
};
template <class R>
Rig(const R&) -> Rig<R>;

const auto snapkv = recipe(evict::SnapKV{.tokens = 32, .window = 8});

}  // namespace

TEST_CASE("cache: only its first step ends a prompt by itself, accepted drafts do not", "[cache][phase]") {
  Rig r(snapkv);
  REQUIRE(r.forward(100) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 32);
  REQUIRE(r.forward(1) == Status::ok);
  REQUIRE(r.forward(5) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 38);
  REQUIRE(r.cache.report().evictions == 1);
  REQUIRE(r.forward(5, Phase::prefill_end) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 32);
}

TEST_CASE("cache: a prompt in chunks is scored when it ends", "[cache][phase]") {
  Rig r(snapkv);
  REQUIRE(r.forward(60, Phase::prefill_chunk) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 60);
  REQUIRE(r.forward(40, Phase::prefill_end) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 32);
}

TEST_CASE("cache: attention is asked for only by steps that read it", "[cache][phase]") {
  Rig once(snapkv);
  REQUIRE(once.append(50) == Status::ok);
  REQUIRE(once.cache.wants_mass(0));
  REQUIRE_FALSE(once.cache.wants_mass(0, Phase::prefill_chunk));
  REQUIRE(once.cache.step(once.ctx, 0, AttentionView{}) == Status::missing_input);
  REQUIRE(once.cache.pending() == 50);
  REQUIRE(once.cache.step(once.ctx, 0, AttentionView{}, Phase::prefill_chunk) == Status::ok);
  REQUIRE(once.append(1) == Status::ok);
  REQUIRE_FALSE(once.cache.wants_mass(0));
  REQUIRE(once.cache.step(once.ctx, 0, AttentionView{}) == Status::ok);

  Rig always(recipe(evict::H2O{.heavy = 8, .recent = 8}));
  REQUIRE(always.append(5) == Status::ok);
  for (const Phase p : {Phase::automatic, Phase::prefill_chunk, Phase::prefill_end, Phase::decode})
    REQUIRE(always.cache.wants_mass(0, p));
  Rig never(recipe(evict::Knorm{.tokens = 8, .recent = 4}));
  REQUIRE(never.append(5) == Status::ok);
  REQUIRE_FALSE(never.cache.wants_mass(0));
}

TEST_CASE("cache: a score that is not a number is reported and leaves first", "[cache][evict]") {
  Rig r(recipe(evict::H2O{.heavy = 4, .recent = 4}));
  REQUIRE(r.append(12) == Status::ok);
  std::vector<float> mass(24, 0.5f);
  mass[2] = mass[12 + 1] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(r.cache.step(r.ctx, 0, {r.cache.ragged(0, mass.data()), 1}) == Status::ok);
  REQUIRE(r.cache.report().nan_scores == 2);
  for (const auto& [head, token] : {std::pair<index_t, index_t>{0, 2}, {1, 1}})
    for (index_t s = 0; s < r.cache.slots(0, head); ++s) REQUIRE(r.cache.token(0, head, s) != token);
}
