#include <algorithm>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/evict/caote.hpp>
#include <kvcondense/evict/chunked.hpp>
#include <kvcondense/evict/chunkkv.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/lagkv.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using evict::InChunks;
using prim::ChunkReduce;

namespace {

const PerToken mass = [](index_t h, index_t t) { return number(9, h, t); };

/// chunkkv without chunks of its own.
struct Whole {
  [[maybe_unused]] static constexpr Descriptor about{"whole", Stage::evict, "test"};
  [[maybe_unused]] static constexpr Inputs needs = Input::attention;
  auto pipeline() const {
    using namespace evict;
    return Pipeline{AttentionMass<AllHeads, Latest>{last_rows(6), Reduce::sum, {Reduce::sum}, {}},
                    NoPool{}, Window{6}, Absolute{30}, TopK{}, PrefillOnce{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

/// Whole chunks of [0, past) by the mean or sum of `score`, the best that fit beside the newest tokens; in double.
Ints plain(index_t past, index_t window, index_t chunk, index_t budget, ChunkReduce reduce, const std::function<double(index_t)>& score) {
  Ints order, kept;
  std::vector<double> of;
  for (index_t first = 0; first < past; first += chunk) {
    const index_t end = std::min(past, first + chunk);
    double sum = 0;
    for (index_t t = first; t < end; ++t) sum += score(t);
    of.push_back(reduce == ChunkReduce::mean ? sum / static_cast<double>(end - first) : sum);
    order.push_back(first / chunk);
  }
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return of[at(a)] > of[at(b)]; });
  order.resize(std::min(order.size(), at((budget - window) / chunk)));
  for (const index_t c : order)
    for (index_t t = c * chunk; t < std::min(past, (c + 1) * chunk); ++t) kept.push_back(t);
  for (index_t t = past; t < past + window; ++t) kept.push_back(t);
  std::sort(kept.begin(), kept.end());
  return kept;
}

}  // namespace

TEST_CASE("chunked: keeps what the plain rule keeps of every head", "[evict][chunked]") {
  const index_t chunk = GENERATE(1, 3, 7, 10, 100), group = GENERATE(1, 3, 7);
  const auto reduce = GENERATE(ChunkReduce::mean, ChunkReduce::sum);
  CAPTURE(chunk, group);
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = 8};
  auto d = drive(shape, InChunks{evict::SnapKV{.tokens = 30, .window = 6, .kernel = 1}, chunk, reduce});
  REQUIRE(d.step(83, Phase::prefill_end, mass) == Status::ok);
  for (index_t h = 0; h < 2; ++h)
    REQUIRE(d.held[at(h)] == plain(77, 6, chunk, 30, reduce, [&](index_t t) { return mass(h, t); }));
}

TEST_CASE("chunked: over one set per layer it is what chunkkv is", "[evict][chunked]") {
  const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 8};
  auto a = drive(shape, evict::ChunkKV{.tokens = 30, .window = 6, .chunk = 5});
  auto b = drive(shape, InChunks{Whole{}, 5});
  REQUIRE(a.step(83, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(b.step(83, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(a.held == b.held);
}

TEST_CASE("chunked: goes with budgets and with errors of the output", "[evict][chunked]") {
  const evict::H2O h2o{.heavy = 24, .recent = 6};
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 8};
  const auto lengths = [&](auto d) {
    d.value = [](index_t h, index_t t, index_t c) { return static_cast<float>(number(4, h, 8 * t + c)); };
    REQUIRE(d.step(90, Phase::prefill_end, [](index_t h, index_t t) { return number(9, h, t) * static_cast<double>(1 + 3 * h); }) == Status::ok);
    return Ints{static_cast<index_t>(d.held[0].size()), static_cast<index_t>(d.held[1].size())};
  };
  REQUIRE(lengths(drive(shape, budget::Uniform{InChunks{h2o, 6}, 20})) == Ints{18, 18});
  const Ints shared = lengths(drive(shape, budget::Ada{InChunks{h2o, 6}, 0.0}));
  REQUIRE((shared[1] > 30 && shared[0] < 30 && shared[0] + shared[1] <= 60));
  REQUIRE(lengths(drive(shape, InChunks{evict::Caote{h2o}, 6})) == Ints{30, 30});
}

TEST_CASE("chunked: keeps the promises of a pipeline, but for places that no chunk fits", "[evict][chunked]") {
  check_promises(InChunks{evict::SnapKV{.tokens = 24, .window = 4}, 7}, InChunks{evict::SnapKV{.tokens = 300, .window = 4}, 7},
                 {.fills_budget = false});
  check_promises(InChunks{evict::H2O{.heavy = 20, .recent = 4}, 1}, InChunks{evict::H2O{.heavy = 300, .recent = 4}, 1});
}

TEST_CASE("chunked: refused without a chunk, and where slots are not chosen one by one", "[evict][chunked]") {
  REQUIRE(InChunks{evict::H2O{}, 0}.validate({}) == Status::invalid_argument);
  REQUIRE(InChunks{evict::H2O{.heavy = -1}, 4}.validate({}) == Status::invalid_argument);
  REQUIRE(InChunks{evict::H2O{}, 4}.validate({}) == Status::ok);
  REQUIRE(InChunks{evict::ChunkKV{}, 4}.validate({}) == Status::incompatible);
  REQUIRE(InChunks{evict::LagKV{}, 4}.validate({}) == Status::incompatible);
  REQUIRE(InChunks{evict::SinkWindow{}, 4}.validate({}) == Status::incompatible);
  REQUIRE(InChunks{InChunks{evict::H2O{}, 4}, 4}.validate({}) == Status::incompatible);
  REQUIRE(InChunks{evict::Caote{evict::H2O{}, false, true}, 4}.validate({}) == Status::incompatible);
}
