#include <cmath>

#include <evict/properties.hpp>
#include <kvcondense/evict/dms.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Steps `count` tokens whose gates are gate(head, token).
template <class D, class F>
void feed(D& d, index_t count, F&& gate, Phase phase = Phase::decode) {
  std::vector<float> g;
  for (index_t h = 0; h < d.shape.kv_heads; ++h)
    for (index_t t = 0; t < count; ++t) g.push_back(gate(h, d.seen + t));
  d.inputs = {.gates = dense_view(static_cast<const float*>(g.data()), d.shape.kv_heads, count)};
  REQUIRE(d.step(count, phase) == Status::ok);
}

}  // namespace

// The oracle's `gumbel_sigmoid` and `schedule` say how a model is taught its gates: the noise that makes a decision soft, and
// how many tokens are to leave at each step of training. A cache reads gates of a model that has been taught.
TEST_CASE("dms: what a token sees equals the oracle, with gates of the token and of the one before", "[evict][dms]") {
  const auto oracle = eviction_oracle("dms");
  const auto bits = oracle["params"]["decisions"].get<std::vector<int>>();
  for (const bool previous : {false, true}) {
    const index_t ring = oracle["params"]["window"];
    auto d = drive({}, evict::Dms{.window = ring - 1, .scale = 1, .offset = 0, .of_previous = previous});
    for (const auto& step : oracle[previous ? "shifted_to_previous_token" : "same_token"]) {
      REQUIRE(with_new(d.held, d.seen, 1)[0] == step["visible"].get<Ints>());
      feed(d, 1, [&](index_t, index_t t) { return bits[at(t)] == 1 ? 0.5f : -0.5f; });
    }
  }
}

TEST_CASE("dms: heads keep what their own gates let stay, however tokens come", "[evict][dms]") {
  const CacheShape shape{.q_heads = 6, .kv_heads = 3, .head_dim = 4};
  const auto gate = [](index_t h, index_t t) { return static_cast<float>((t * 7 + h * 3) % (h + 2)) - 0.5f; };
  for (const bool previous : {false, true})
    for (const index_t cut : {1, 5, 64}) {
      auto d = drive(shape, evict::Dms{.window = 6, .scale = 1, .offset = 0, .of_previous = previous});
      for (index_t first = 0; first < 64; first += cut) feed(d, std::min<index_t>(cut, 64 - first), gate);
      for (index_t h = 0; h < 3; ++h) {
        Ints want;
        for (index_t t = 0; t < 64; ++t)
          if (t >= 58 || gate(h, previous ? t + 1 : t) <= 0) want.push_back(t);
        REQUIRE(d.held[at(h)] == want);
      }
    }
}

TEST_CASE("dms: scale and offset, and gates that are not numbers", "[evict][dms]") {
  const auto kept = [](const evict::Dms& p, float gate) {
    auto d = drive({}, p);
    feed(d, 3, [&](index_t, index_t t) { return t == 0 ? gate : -1e9f; });
    return d.held[0].size() == 3;
  };
  const evict::Dms usual{.window = 1};
  REQUIRE(kept(usual, 0.05f));  // 100 * 0.05 - 5 is not above 0
  REQUIRE_FALSE(kept(usual, 0.06f));
  REQUIRE(kept({.window = 1, .offset = 7}, 0.06f));
  REQUIRE(kept({.window = 1, .scale = 10}, 0.06f));
  REQUIRE(kept(usual, -INFINITY));
  REQUIRE_FALSE(kept(usual, INFINITY));
  REQUIRE_FALSE(kept(usual, NAN));
  auto d = drive({}, usual);
  feed(d, 3, [](index_t, index_t) { return NAN; });
  REQUIRE(d.nan == 2);
  REQUIRE(evict::Dms{.window = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::Dms{.scale = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::Dms{.offset = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::Dms{.scale = 1.1e9f}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::Dms{.offset = 1.1e9f}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::Dms{.scale = 1e9f, .offset = 1e9f}.validate({}) == Status::ok);
}

TEST_CASE("dms: a cache's heads grow apart and memory follows them", "[evict][dms]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
  CacheRig r(shape, recipe(evict::Dms{.window = 16}), 2048, 32);
  std::mt19937 random(2);
  for (int i = 0; i < 32; ++i) {
    const Tokens t(shape, 32, random);
    std::vector<float> gates(64, -1.0f);
    std::fill_n(gates.begin(), 32, 1.0f);  // head 0 lets everything go
    REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(r.cache.step(r.ctx, 0, StepInputs{.gates = dense_view(static_cast<const float*>(gates.data()), 2, 32)}) == Status::ok);
  }
  REQUIRE(r.cache.slots(0, 0) == 16);
  REQUIRE(r.cache.slots(0, 1) == 1024);
  const Report report = r.cache.report();
  REQUIRE(report.exact_bytes < (1024 + 4 * 16) * 2 * 64 * 2);
  REQUIRE(report.bytes() == r.memory.live_bytes);
}
