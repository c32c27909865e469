#include <evict/properties.hpp>
#include <kvcondense/evict/simlayerkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using evict::SimLayerKV;

namespace {

/// Mass of a layer of two heads of three query heads each: a token's, by the head's list, summed over the group.
PerToken masses(std::vector<std::vector<double>> of) {
  return [of = std::move(of)](index_t h, index_t t) { return 3 * of[at(h)][at(t)]; };
}
const CacheShape two{.q_heads = 6, .kv_heads = 2};

}  // namespace

TEST_CASE("simlayerkv: a layer whose last query looks at the ends keeps these, another one everything", "[evict][simlayerkv]") {
  // On the first token and the newest two: 0.9 and 0.6, 0.75 in the mean.
  const PerToken mass = masses({{0.5, 0.05, 0.05, 0.1, 0.3}, {0.1, 0.3, 0.1, 0.2, 0.3}});
  auto lazy = drive(two, SimLayerKV{.threshold = 0.74, .sinks = 1, .recent = 2});
  REQUIRE(lazy.step(5, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(lazy.held == Rows{{0, 3, 4}, {0, 3, 4}});
  auto busy = drive(two, SimLayerKV{.threshold = 0.76, .sinks = 1, .recent = 2});
  REQUIRE(busy.step(5, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(busy.held == Rows{{0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}});
}

TEST_CASE("simlayerkv: the threshold is passed, not met", "[evict][simlayerkv]") {
  const PerToken mass = masses({{0.25, 0.5, 0.25}, {0.25, 0.5, 0.25}});
  for (const auto& [threshold, left] : {std::pair{0.5, 3}, {0.49, 2}}) {
    auto d = drive(two, SimLayerKV{.threshold = threshold, .sinks = 1, .recent = 1});
    REQUIRE(d.step(3, Phase::prefill_end, mass) == Status::ok);
    REQUIRE(d.held[1].size() == static_cast<std::size_t>(left));
  }
}

TEST_CASE("simlayerkv: the decision is that of the plain sum, in every group and for ends of any length", "[evict][simlayerkv]") {
  const index_t group = GENERATE(1, 3, 7), heads = GENERATE(1, 4), sinks = GENERATE(0, 2, 9), recent = GENERATE(1, 7, 40);
  const std::uint32_t seed = GENERATE(1u, 2u, 3u);
  const CacheShape shape{.q_heads = heads * group, .kv_heads = heads};
  constexpr index_t n = 30;
  double ends = 0;
  const PerToken mass = [&](index_t h, index_t t) { return number(seed, h, t) / 20 * static_cast<double>(group); };
  for (index_t h = 0; h < heads; ++h)
    for (index_t t = 0; t < n; ++t)
      if (t < sinks || t >= n - recent) ends += mass(h, t);
  const double share = ends / static_cast<double>(heads * group);
  for (const double step : {-0.01, 0.01}) {
    const double threshold = share + step;
    if (threshold < 0.0 || threshold > 1.0) continue;
    auto d = drive(shape, SimLayerKV{.threshold = threshold, .sinks = sinks, .recent = recent});
    REQUIRE(d.step(n, Phase::prefill_end, mass) == Status::ok);
    for (index_t h = 0; h < heads; ++h) REQUIRE(static_cast<index_t>(d.held[at(h)].size()) == (step < 0 ? std::min(n, sinks + recent) : n));
  }
}

TEST_CASE("simlayerkv: only the end of a prompt decides, and generated tokens stay", "[evict][simlayerkv]") {
  auto d = drive(two, SimLayerKV{.threshold = 0.0, .sinks = 1, .recent = 2});
  const PerToken some = [](index_t, index_t) { return 0.1; };
  REQUIRE(d.step(9, Phase::prefill_chunk, some) == Status::ok);
  REQUIRE_FALSE(d.fired);
  REQUIRE(d.step(3, Phase::prefill_end, some) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 10, 11});
  for (int i = 0; i < 4; ++i) REQUIRE(d.step(1, Phase::decode, some) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 10, 11, 12, 13, 14, 15});
  REQUIRE(d.pipeline.attention().of(40) == 1);  // one row, whatever came
}

TEST_CASE("simlayerkv: NaN makes no layer lazy, short prompts stay whole, and heads may hold different numbers of slots", "[evict][simlayerkv]") {
  auto bad = drive(two, SimLayerKV{.threshold = 0.0, .sinks = 1, .recent = 1});
  REQUIRE(bad.step(5, Phase::prefill_end, [](index_t h, index_t t) { return h == 1 && t == 4 ? std::nan("") : 0.2; }) == Status::ok);
  REQUIRE(bad.held == Rows{{0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}});
  auto brief = drive(two, SimLayerKV{.threshold = 0.0, .sinks = 4, .recent = 4});
  REQUIRE(brief.step(0, Phase::prefill_end, [](index_t, index_t) { return 0.2; }) == Status::ok);
  REQUIRE(brief.step(7, Phase::prefill_end, [](index_t, index_t) { return 0.2; }) == Status::ok);
  REQUIRE(brief.held[0].size() == 7);
  auto ragged = drive(two, SimLayerKV{.threshold = 0.0, .sinks = 1, .recent = 1});
  ragged.seen = ragged.stepped = 8;
  ragged.held = {{0, 3, 5, 6, 7}, {2}};
  REQUIRE(ragged.step(2, Phase::prefill_end, [](index_t, index_t) { return 0.2; }) == Status::ok);
  REQUIRE(ragged.held == Rows{{0, 9}, {2, 9}});
}

TEST_CASE("simlayerkv: keeps the promises of a pipeline", "[evict][simlayerkv]") {
  // A layer is one decision, and what is not lazy has no budget: sinks and newest alone are promised.
  check_promises(SimLayerKV{.threshold = 0.0, .sinks = 2, .recent = 4}, SimLayerKV{.threshold = 0.0, .sinks = 2, .recent = 400}, {.heads_alone = false, .all_workspace = false});
  check_promises(SimLayerKV{.threshold = 0.6, .sinks = 2, .recent = 4}, SimLayerKV{.threshold = 0.6, .sinks = 2, .recent = 400}, {.heads_alone = false, .all_workspace = false});
}

TEST_CASE("simlayerkv: thresholds and ends out of range are refused", "[evict][simlayerkv]") {
  REQUIRE(SimLayerKV{}.validate({}) == Status::ok);
  REQUIRE(SimLayerKV{.threshold = -0.1}.validate({}) == Status::invalid_argument);
  REQUIRE(SimLayerKV{.threshold = 1.1}.validate({}) == Status::invalid_argument);
  REQUIRE(SimLayerKV{.threshold = std::nan("")}.validate({}) == Status::invalid_argument);
  REQUIRE(SimLayerKV{.sinks = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(SimLayerKV{.recent = 0}.validate({}) == Status::invalid_argument);
}
