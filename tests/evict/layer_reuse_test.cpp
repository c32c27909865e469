#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <evict/in_pairs.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/layer_pattern.hpp>
#include <kvcondense/budget/pyramid.hpp>
#include <kvcondense/budget/skip_layers.hpp>
#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/chunkkv.hpp>
#include <kvcondense/evict/erased.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/layer_reuse.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/merge/centroid.hpp>
#include <kvcondense/merge/weightedkv.hpp>
#include <support/byte_list.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using test::InPairs;
using test::Tokens;

namespace {

const CacheShape shape{.layers = 5, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 8};
constexpr index_t longest = 200, most_tokens = 60;

constexpr evict::ChunkKV chunks(index_t reuse) { return {.tokens = 31, .window = 5, .chunk = 4, .reuse = reuse}; }

/// A cache and numbers for it that differ from layer to layer.
template <class R>
struct Rig {
  using C = Cache<Cpu, R>;
  C cache;
  std::mt19937 random{7};
  Workspace work;
  std::vector<float> out, mass;

  explicit Rig(const R& r) : Rig(std::move(*make_cache<Cpu>(shape, r))) {}
  explicit Rig(C&& c) : cache(std::move(c)), out(static_cast<std::size_t>(shape.q_heads * most_tokens * shape.head_dim)), mass(longest * 2) {
    REQUIRE(work.reserve(cache.workspace_bytes(longest, most_tokens)) == Status::ok);
  }
  Context<Cpu> ctx() { return Context<Cpu>(work.bytes()); }
  TensorView<float, 3> room(index_t n) { return dense_view(out.data(), shape.q_heads, n, shape.head_dim); }

  Status forward(index_t layer, index_t n, Phase phase) {
    const Tokens t(shape, n, random, 2.0f);
    Context<Cpu> c = ctx();
    return cache.forward(c, layer, t.queries(shape), t.keys(shape), t.values(shape), room(n), {}, phase);
  }
  void pass(index_t n, Phase phase) {
    for (index_t l = 0; l < shape.layers; ++l) REQUIRE(forward(l, n, phase) == Status::ok);
  }
  std::vector<std::vector<index_t>> held(index_t layer) const {
    std::vector<std::vector<index_t>> all(static_cast<std::size_t>(shape.kv_heads));
    for (index_t h = 0; h < shape.kv_heads; ++h)
      for (index_t s = 0; s < cache.slots(layer, h); ++s) all[static_cast<std::size_t>(h)].push_back(cache.token(layer, h, s));
    return all;
  }
  bool follows_all() const { return held(1) == held(0) && held(3) == held(2); }
};
template <class R>
Rig(const R&) -> Rig<R>;

}  // namespace

TEST_CASE("layer_reuse: the first of so many layers chooses, the next ones hold its tokens", "[evict][layer_reuse]") {
  const index_t reuse = GENERATE(1, 2, 3, 100);
  Rig each(recipe(chunks(1))), r(recipe(chunks(reuse)));
  each.pass(60, Phase::prefill_end), r.pass(60, Phase::prefill_end);
  for (index_t l = 0; l < shape.layers; ++l) {
    CAPTURE(reuse, l);
    const index_t first = l - l % reuse;
    REQUIRE(evict::LayerReuse{reuse}.first(l) == first);
    REQUIRE(evict::LayerReuse{reuse}.follows(l) == (first != l));
    REQUIRE(r.held(l) == r.held(first));
    REQUIRE(r.held(first) == each.held(first));
    REQUIRE((r.held(l) == each.held(l)) == (first == l));  // numbers of layers are such that they choose otherwise
    REQUIRE(r.cache.slots(l, 0) < 32);
  }
  r.pass(3, Phase::decode);
  for (index_t l = 0; l < shape.layers; ++l) REQUIRE(r.cache.length(l) == 63);
  r.pass(40, Phase::prefill_end);  // a second prompt, from slots that left gaps
  for (index_t l = 0; l < shape.layers; ++l) REQUIRE(r.held(l) == r.held(l - l % reuse));
  const Report report = r.cache.report();
  REQUIRE(report.budget_asked == 31 * shape.layers * shape.kv_heads);
  REQUIRE(report.budget_met <= report.budget_asked);
}

TEST_CASE("layer_reuse: a layer that follows wants no attention, and looks at none", "[evict][layer_reuse]") {
  Rig r(recipe(chunks(2)));
  Context<Cpu> ctx = r.ctx();
  for (index_t l = 0; l < shape.layers; ++l) {
    const Tokens t(shape, 50, r.random, 2.0f);
    REQUIRE(r.cache.append(ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
    const bool follows = l % 2 == 1;
    REQUIRE(r.cache.wants_mass(l) == !follows);
    AttendOutputs measure;
    if (!follows) measure.mass = r.cache.ragged(l, r.mass.data());
    REQUIRE(r.cache.attend(ctx, l, t.queries(shape), r.room(50), measure) == Status::ok);
    if (!follows) {
      REQUIRE(std::string_view(r.cache.missing(l, {})) == "attention");
      REQUIRE(r.cache.step(ctx, l, StepInputs{}) == Status::missing_input);
      REQUIRE(r.cache.step(ctx, l, AttentionView{measure.mass, r.cache.mass_rows(50)}) == Status::ok);
    } else {
      REQUIRE(r.cache.missing(l, {}) == nullptr);
      if (l == 1) {
        REQUIRE(r.cache.step(ctx, l, StepInputs{}) == Status::ok);
      } else {  // what it is given all the same, it does not read
        std::fill(r.mass.begin(), r.mass.end(), std::numeric_limits<float>::quiet_NaN());
        REQUIRE(r.cache.step(ctx, l, AttentionView{r.cache.ragged(l, r.mass.data()), 5}) == Status::ok);
      }
    }
  }
  REQUIRE(r.follows_all());
  REQUIRE(r.cache.report().nan_scores == 0);
}

TEST_CASE("layer_reuse: policies that add attention up, or look at queries, follow as well", "[evict][layer_reuse]") {
  Rig sums(recipe(InPairs{evict::H2O{.heavy = 20, .recent = 10}}));
  sums.pass(50, Phase::prefill_end);
  for (int i = 0; i < 5; ++i) sums.pass(1, Phase::decode);
  REQUIRE(sums.follows_all());
  REQUIRE(sums.cache.slots(1, 0) == 30);
  REQUIRE(sums.held(2) != sums.held(0));
  REQUIRE_FALSE(sums.cache.counts_attention(1));
  for (const auto& head : sums.cache.layers()[1].heads)
    for (const float x : head.lane[0]) REQUIRE(x == 0.0f);

  Rig asks(recipe(InPairs{evict::RKV{.tokens = 30, .window = 4, .kernel = 3, .slack = 1}}));
  asks.pass(50, Phase::prefill_end);
  for (int i = 0; i < 5; ++i) asks.pass(1, Phase::decode);
  REQUIRE(asks.follows_all());
  const Tokens t(shape, 1, asks.random, 2.0f);
  Context<Cpu> ctx = asks.ctx();
  REQUIRE(asks.forward(0, 1, Phase::decode) == Status::ok);
  REQUIRE(asks.cache.append(ctx, 1, t.keys(shape), t.values(shape)) == Status::ok);
  REQUIRE(asks.cache.step(ctx, 1, StepInputs{}) == Status::ok);
  REQUIRE(asks.held(1) == asks.held(0));
}

TEST_CASE("layer_reuse: a step before that of the first layer is refused, and changes nothing", "[evict][layer_reuse]") {
  Rig r(recipe(chunks(2)));
  REQUIRE(r.forward(1, 50, Phase::prefill_end) == Status::order_violation);
  REQUIRE(r.cache.length(1) == 0);  // forward takes its tokens back
  const Tokens t(shape, 50, r.random, 2.0f);
  Context<Cpu> ctx = r.ctx();
  REQUIRE(r.cache.append(ctx, 1, t.keys(shape), t.values(shape)) == Status::ok);
  REQUIRE(r.cache.append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  REQUIRE(r.cache.step(ctx, 1, StepInputs{}) == Status::order_violation);  // the first layer's are pending still
  REQUIRE(r.cache.pending(1) == 50);
  REQUIRE(r.cache.slots(1, 0) == 50);
  REQUIRE(r.cache.attend(ctx, 0, t.queries(shape), r.room(50), {.mass = r.cache.ragged(0, r.mass.data())}) == Status::ok);
  REQUIRE(r.cache.step(ctx, 0, AttentionView{r.cache.ragged(0, r.mass.data()), r.cache.mass_rows(50)}) == Status::ok);
  REQUIRE(r.cache.step(ctx, 1, StepInputs{}) == Status::ok);
  REQUIRE(r.held(1) == r.held(0));
  // Where nothing is chosen, layers may come in any order.
  for (const index_t l : {4, 3, 1, 2, 0})
    REQUIRE(r.forward(l, l < 2 ? 1 : 57, Phase::decode) == Status::ok);
  REQUIRE(r.held(1) == r.held(0));
  REQUIRE(r.forward(0, 6, Phase::prefill_end) == Status::ok);
  REQUIRE(r.cache.append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);  // tokens of the next pass, of which the next layer knows nothing yet
  REQUIRE(r.forward(1, 6, Phase::prefill_end) == Status::ok);
  REQUIRE(r.cache.slots(1, 0) == r.cache.slots(0, 0) - 50);
  REQUIRE(r.cache.truncate(57) == Status::ok);
  REQUIRE(r.held(1) == r.held(0));
  REQUIRE(r.forward(0, 1, Phase::decode) == Status::ok);  // one token ahead
  REQUIRE(r.forward(1, 2, Phase::prefill_end) == Status::order_violation);
}

TEST_CASE("layer_reuse: truncate, remove, a fork and a file leave layers that go on together", "[evict][layer_reuse]") {
  Rig r(recipe(chunks(2)));
  r.pass(50, Phase::prefill_end);
  r.pass(4, Phase::decode);
  REQUIRE(r.cache.truncate(45) == Status::ok);  // into the window that every head kept
  Context<Cpu> ctx = r.ctx();
  REQUIRE(r.cache.remove(ctx, 3, 20) == Status::ok);
  REQUIRE(r.follows_all());
  auto twin = r.cache.fork();
  REQUIRE(twin);
  Rig fork(std::move(*twin));
  test::ByteList file;
  REQUIRE(save(r.cache, file) == Status::ok);
  Rig loaded(r.cache.recipe());
  REQUIRE(load(loaded.cache, file.bytes) == Status::ok);
  r.random.seed(11), fork.random.seed(11), loaded.random.seed(11);
  for (auto* c : {&r, &fork, &loaded}) {
    c->pass(40, Phase::prefill_end);
    REQUIRE(c->follows_all());
    REQUIRE(c->held(1) == r.held(1));
    REQUIRE(c->held(4) == r.held(4));
  }
  // The first layer has made a step that the next one was refused: both take it back, or the next one catches up.
  REQUIRE(r.forward(0, 30, Phase::prefill_end) == Status::ok);
  Context<Cpu> none;
  const Tokens t(shape, 30, r.random);
  REQUIRE(r.cache.forward(none, 1, t.queries(shape), t.keys(shape), t.values(shape), r.room(30), {}, Phase::prefill_end) == Status::workspace_too_small);
  REQUIRE(r.forward(1, 30, Phase::prefill_end) == Status::ok);
  REQUIRE(r.held(1) == r.held(0));
}

TEST_CASE("layer_reuse: a layer that lacks what the first one kept is refused, and keeps what it has", "[evict][layer_reuse]") {
  Rig each(recipe(chunks(1))), r(recipe(chunks(2)));
  each.pass(50, Phase::prefill_end);
  test::ByteList file;
  REQUIRE(save(each.cache, file) == Status::ok);
  REQUIRE(load(r.cache, file.bytes) == Status::ok);
  r.pass(2, Phase::decode);  // nothing is chosen
  const auto before = r.held(1);
  REQUIRE(before != r.held(0));
  REQUIRE(r.forward(0, 20, Phase::prefill_end) == Status::ok);
  REQUIRE(r.forward(1, 20, Phase::prefill_end) == Status::incompatible);
  REQUIRE(r.held(1) == before);
}

TEST_CASE("layer_reuse: with budgets of layers around it the first layer's choice holds, but for heads that may keep all", "[evict][layer_reuse]") {
  SECTION("full first layers") {
    Rig r(recipe(budget::SkipLayers{chunks(2), 3}));  // 0, 1 and 2 are full, and 3 follows 2
    r.pass(50, Phase::prefill_end);
    for (index_t l = 0; l < 4; ++l) REQUIRE(r.cache.slots(l, 0) == 50);
    REQUIRE(r.cache.slots(4, 0) < 32);
    const Report report = r.cache.report();
    REQUIRE(report.budget_asked == 2 * (3 * 50 + 2 * 31));  // and what came of it is told
    REQUIRE(report.budget_met == 2 * (4 * 50 + r.cache.slots(4, 0)));
  }
  SECTION("full layers in the middle") {
    Rig r(recipe(budget::LayerPattern{chunks(2), 0.6}));  // 1, 2 and 3
    r.pass(50, Phase::prefill_end);
    REQUIRE(r.cache.slots(0, 0) < 32);
    for (index_t l = 1; l < 4; ++l) REQUIRE(r.cache.slots(l, 0) == 50);
    r.pass(10, Phase::prefill_end);  // a layer that kept more has all that the first one chooses from
    for (index_t l = 1; l < 4; ++l) REQUIRE(r.cache.slots(l, 0) == 60);
  }
  SECTION("a pyramid") {
    Rig r(recipe(budget::Pyramid{evict::ChunkKV{.tokens = 31, .window = 5, .chunk = 2, .reuse = 2}}));
    r.pass(60, Phase::prefill_end);
    REQUIRE(r.follows_all());
    REQUIRE(r.cache.slots(2, 0) < r.cache.slots(0, 0));
    REQUIRE(r.cache.slots(4, 0) < r.cache.slots(2, 0));
  }
}

TEST_CASE("layer_reuse: what folds goes where it goes in each layer", "[evict][layer_reuse]") {
  const evict::H2O h2o{.heavy = 20, .recent = 10};
  Rig r(recipe(InPairs{h2o}, merge::WeightedKV{}));
  r.pass(50, Phase::prefill_end);
  r.pass(1, Phase::decode);
  REQUIRE(r.follows_all());
  REQUIRE(r.cache.report().merged_slots > 0);
}

TEST_CASE("layer_reuse: budgets and sets that scores decide are refused, and so are no layers", "[evict][layer_reuse]") {
  const evict::SnapKV snap{.tokens = 30, .window = 4};
  REQUIRE(make_cache<Cpu>(shape, recipe(InPairs{snap})).has_value());
  REQUIRE(make_cache<Cpu>(shape, recipe(budget::Ada{InPairs{snap}})).status() == Status::incompatible);
  const evict::H2O h2o{.heavy = 20, .recent = 10};
  REQUIRE(make_cache<Cpu>(shape, recipe(h2o, merge::Centroid{})).has_value());
  REQUIRE(make_cache<Cpu>(shape, recipe(InPairs{h2o}, merge::Centroid{})).status() == Status::incompatible);
  REQUIRE(make_cache<Cpu>(shape, recipe(chunks(0))).status() == Status::invalid_argument);
  REQUIRE(make_cache<Cpu>(shape, recipe(chunks(-2))).status() == Status::invalid_argument);
}

TEST_CASE("layer_reuse: wrappers and pipelines of the run time hand it on", "[evict][layer_reuse]") {
  const auto p = budget::SkipLayers{budget::Pyramid{chunks(3)}, 1}.pipeline();
  REQUIRE(p.reuse.layers == 3);
  REQUIRE(evict::AnyPipeline(p).reuse.layers == 3);
  REQUIRE(p.with_trigger(evict::EveryStep{}).with_select(evict::TopK{}).with_pool(evict::NoPool{}).with_protect(evict::NoProtect{}).reuse.layers == 3);
}
