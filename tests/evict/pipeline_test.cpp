#include <evict/properties.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keep_all.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("pipeline: sliding_window keeps its promises", "[evict][pipeline]") {
  check_promises(evict::SlidingWindow{.window = 24}, evict::SlidingWindow{.window = 400});
}
TEST_CASE("pipeline: sink_window keeps its promises", "[evict][pipeline]") {
  check_promises(evict::SinkWindow{.recent = 20, .sinks = 4}, evict::SinkWindow{.recent = 400, .sinks = 4});
}
TEST_CASE("pipeline: h2o keeps its promises", "[evict][pipeline]") {
  check_promises(evict::H2O{.heavy = 16, .recent = 8}, evict::H2O{.heavy = 300, .recent = 8});
}
TEST_CASE("pipeline: tova keeps its promises", "[evict][pipeline]") {
  check_promises(evict::Tova{.tokens = 24}, evict::Tova{.tokens = 300}, {.keeps_newest = false});
}
TEST_CASE("pipeline: snapkv keeps its promises", "[evict][pipeline]") {
  check_promises(evict::SnapKV{.tokens = 24, .window = 8}, evict::SnapKV{.tokens = 300, .window = 8});
  check_promises(evict::SnapKV{.tokens = 24, .window = 8, .kernel = 5, .pool = prim::Pool::average},
                 evict::SnapKV{.tokens = 300, .window = 8});
}
TEST_CASE("pipeline: knorm keeps its promises", "[evict][pipeline]") {
  check_promises(evict::Knorm{.tokens = 24, .recent = 4}, evict::Knorm{.tokens = 300, .recent = 4});
}

TEST_CASE("pipeline: more protected than budget keeps all protected, and the budget shows it", "[evict][pipeline]") {
  const evict::Pipeline p{evict::NoScore{},  evict::NoPool{}, evict::Both{evict::Sinks{2}, evict::Recent{3}},
                          evict::Absolute{4}, evict::TopK{},   evict::EveryStep{}};
  Driver d(CacheShape{}, p);
  REQUIRE(d.step(9, Phase::decode) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 6, 7, 8});
  REQUIRE(d.budget[0] == 4);
}

TEST_CASE("pipeline: group reductions equal the oracle", "[evict][pipeline]") {
  const auto oracle = eviction_oracle("block_gqa_aggregation");
  const FX1 fx;
  const PerToken mass = fx.mass(7, 8, with_new(Rows(2), 0, 8));
  std::vector<float> m, out(16);
  for (index_t g = 0; g < 2; ++g)
    for (index_t t = 0; t < 8; ++t) m.push_back(static_cast<float>(mass(g, t)));
  const index_t offset[] = {0, 8, 16};
  StepView<Cpu> view;
  view.shape = fx.shape;
  view.offset = offset;
  view.inputs.attention = {{m.data(), offset, 2}, 1};
  Context<Cpu> ctx;
  Scratch none;
  const auto require = [&](const auto& source, const auto& want) {
    REQUIRE(source.score(ctx, view, {}, {out.data(), offset, 2}, none) == Status::ok);
    for (index_t g = 0; g < 2; ++g)
      for (index_t t = 0; t < 8; ++t)
        REQUIRE(out[at(8 * g + t)] == Approx(want(g)[at(t)].template get<double>()).margin(2e-5));
  };
  using evict::Reduce;
  const AttentionNeed last = evict::last_rows(1);
  require(evict::AttentionMass<evict::PerHead, evict::Latest>{last, Reduce::sum, {Reduce::mean}, {}},
          [&](index_t g) { return oracle["prob_mean"][at(g)]; });
  require(evict::AttentionMass<evict::PerHead, evict::Latest>{last, Reduce::mean, {Reduce::sum}, {}},
          [&](index_t g) { return oracle["prob_sum"][at(g)]; });
  require(evict::AttentionMass<evict::AllHeads, evict::Latest>{last, Reduce::sum, {Reduce::mean}, {}},
          [&](index_t) { return oracle["all_heads_mean"]; });
}

namespace {

/// Slots of one head after each decode step under a trigger, from a prompt of 10 cut to `start`.
template <class Trigger>
Ints lengths(const Trigger& trigger, index_t start, index_t budget, std::size_t steps) {
  Driver d(CacheShape{}, evict::Pipeline{evict::NoScore{}, evict::NoPool{}, evict::NoProtect{},
                                         evict::Absolute{budget}, evict::Fixed{.fill = true}, trigger});
  d.seen = 10;
  d.held[0].resize(at(start));
  Ints after;
  for (std::size_t i = 0; i < steps; ++i) {
    REQUIRE(d.step(1, Phase::decode) == Status::ok);
    after.push_back(static_cast<index_t>(d.held[0].size()));
  }
  return after;
}

}  // namespace

TEST_CASE("pipeline: triggers give the lengths of the oracle", "[evict][pipeline]") {
  const auto oracle = eviction_oracle("block_triggers");
  const auto every = oracle["every_step"]["after_step"].get<Ints>();
  REQUIRE(lengths(evict::EveryStep{}, oracle["every_step"]["prompt_compressed_to"], oracle["every_step"]["budget"],
                  every.size()) == every);
  REQUIRE(lengths(evict::PrefillOnceAndEveryStep{}, oracle["every_step"]["prompt_compressed_to"],
                  oracle["every_step"]["budget"], every.size()) == every);
  const auto m = oracle["every_M"]["after_step"].get<Ints>();
  REQUIRE(lengths(evict::EveryM{.every = oracle["every_M"]["M"], .after = oracle["every_M"]["prompt"]},
                  oracle["every_M"]["prompt"], oracle["every_M"]["target"], m.size()) == m);
  const auto slack = oracle["slack"]["after_step"].get<Ints>();
  REQUIRE(lengths(evict::Slack{oracle["slack"]["buffer"]},
                  oracle["slack"]["prompt_compressed_to"], oracle["slack"]["budget"], slack.size()) == slack);
  REQUIRE(lengths(evict::PrefillOnce{}, 6, 6, 3) == Ints{7, 8, 9});
  REQUIRE(lengths(evict::Never{}, 6, 6, 3) == Ints{7, 8, 9});
}

TEST_CASE("pipeline: triggers know the phases of a prefill", "[evict][pipeline]") {
  StepView<Cpu> view;
  const auto fires = [&](const auto& trigger) {
    Ints f;
    for (const Phase p : {Phase::prefill_chunk, Phase::prefill_end, Phase::decode}) {
      view.phase = p;
      f.push_back(trigger.fires(view));
    }
    return f;
  };
  REQUIRE(fires(evict::EveryStep{}) == Ints{1, 1, 1});
  REQUIRE(fires(evict::PrefillOnce{}) == Ints{0, 1, 0});
  REQUIRE(fires(evict::PrefillOnceAndEveryStep{}) == Ints{0, 1, 1});
  REQUIRE(fires(evict::Never{}) == Ints{0, 0, 0});
}

TEST_CASE("pipeline: protected ends are as long as the head at most", "[evict][pipeline]") {
  StepView<Cpu> view;
  for (index_t n = 0; n < 6; ++n) {
    const auto p = evict::Both{evict::Sinks{2}, evict::Recent{3}}.of(view, 0).within(n);
    REQUIRE(p.prefix == std::min<index_t>(2, n));
    REQUIRE(p.suffix == std::min<index_t>(3, n - p.prefix));
  }
  REQUIRE(evict::NoProtect{}.of(view, 0).size() == 0);
}

TEST_CASE("pipeline: threads of the caller change nothing", "[evict][pipeline]") {
  struct Backwards final : Executor {
    index_t workers() const noexcept override { return 3; }
    void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
      for (index_t t = tasks; t > 0; --t) body(state, t - 1, t % 3);
    }
  } executor;
  std::vector<float> scores;
  for (index_t i = 0; i < 60; ++i) scores.push_back(static_cast<float>(number(5, 0, i)));
  const index_t offset[] = {0, 20, 60}, total[] = {7, 9};
  std::vector<std::int32_t> one(60), two(60);
  index_t count[2], again[2];
  Context<Cpu> plain, threads({}, &executor);
  REQUIRE(prim::TopK<Cpu>::run(plain, {scores.data(), offset, 2}, nullptr, total, {one.data(), offset, 2}, count) == Status::ok);
  REQUIRE(prim::TopK<Cpu>::run(threads, {scores.data(), offset, 2}, nullptr, total, {two.data(), offset, 2}, again) == Status::ok);
  REQUIRE((one == two && count[0] == again[0] && count[1] == again[1]));
}
