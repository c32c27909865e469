// Caches on CUDA that store slots in more or fewer bits by scores, beside those on the CPU: scores of an eviction policy.

#include <string>
#include <vector>

#include <kvcondense/any/any_recipe.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keyformer.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/tova.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/quant/mikv.hpp>

#include "cache_live.hpp"
#include "cache_methods.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache codec: mikv") {
  using Mi = quant::MiKV<8, 2>;
  // Nothing leaves: classes alone.
  const evict::H2O all{.heavy = 300, .recent = 300};
  const Mi eighths{.important = 0.25, .block = 8, .least = 16, .keep_window = 3};
  const std::string text = "mikv(important=25%, block=8, least=16, keep_window=3)";
  Pair kept(recipe(all, eighths), "h2o(heavy=300, recent=300) + " + text, small);
  lives(kept);
  // A page has what its codes take: of two groups a map, two rows of eight bits and six of two, each with a scale and a minimum.
  const auto report = kept.on_device().report(kept.device());
  REQUIRE(report);
  CHECK(report->coded_bytes == 24 * 2 * (4 + 2 * (64 + 4) + 6 * (16 + 4)));  // three pages of 16 slots in each column of two heads of two layers
  // Slots leave: groups are joined, and files change sides amid them. The factors of the keys are found late.
  leaves(eighths, text, odd);
  leaves(Mi{.important = 0.1, .block = 16, .balance = false, .sinks = 2}, "mikv(important=10%, block=16, balance=false, sinks=2)", common);
  leaves(Mi{.important = 0.5, .block = 2, .least = 26}, "mikv(important=50%, block=2, least=26)", wide_halves);
  CHECK(make_cache<Cuda>(small, recipe(heavy, Mi{.block = 24})).status() == Status::invalid_argument);
  // Tensor cores read no maps.
  test::OnDevice<float> rows(kept.device(), std::vector<float>(6 * 64));
  Context<Cuda> ctx = kept.device().with_workspace(kept.on_device().workspace_bytes(64, 1));
  const auto queries = dense_view(static_cast<const float*>(rows.data()), 6, 1, 64);
  CHECK(kept.on_device().attend(ctx, 0, queries, dense_view(rows.data(), 6, 1, 64), {}, prim::AttendMath::halves) == Status::not_supported);
}

TEST_CASE("cuda cache: a policy that tells slots apart by other rows than those that eviction measures is refused") {
  CHECK(make_cache<Cuda>(small, recipe(evict::Tova{}, quant::MiKV<8, 2>{})).status() == Status::incompatible);
}

TEST_CASE("cuda cache: a quant stage measures attention for itself, that of the last row") {
  using Last = quant::MiKV<8, 2, evict::Tova>;  // which no text says
  const auto lives_on = [](const evict::SinkWindow& window, const Last& last, const CacheShape& shape) {
    INFO("window of " << window.recent << ", heads of " << shape.head_dim);
    Pair pair(recipe(window, last), *any::AnyCache::make({.evict = any::AnyEvict(window), .quant = any::AnyQuant(last)}, "last rows", shape), shape);
    lives(pair);
  };
  lives_on({.recent = 300, .sinks = 3}, {.important = 0.5, .block = 8, .least = 16}, small);
  lives_on(ends, {.important = 0.5, .block = 2, .least = 20}, wide_halves);
}

TEST_CASE("cuda cache: scores of a quant stage between those of eviction and the weights of a merge stage") {
  // Eviction measures attention with noise, what is merged weighs what it did.
  const evict::Keyformer noisy{.tokens = 32, .recent = 20};
  const merge::D2O weighs{.mass = merge::Mass::exact};
  const quant::MiKV<8, 2> mixed{.important = 0.5, .block = 4, .least = 4, .keep_window = 12};
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
  Pair pair(recipe(noisy, weighs, mixed), "keyformer(tokens=32, recent=20) + d2o(mass=exact) + mikv(important=50%, block=4, least=4, keep_window=12)", shape);
  pair.allow(2e-5f);
  lives(pair);
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  CHECK(report->merged_slots > 0);
  CHECK(report->coded_again > 0);
}

TEST_CASE("cuda cache: a step that finds factors, codes by scores and joins groups and is refused memory leaves all as it was") {
  const auto again = [](auto& ctx, const auto& cache, const auto& fork) { CHECK(fork.report(ctx)->evicted_slots > cache.report(ctx)->evicted_slots); };
  refuse_a_step(recipe(evict::SinkWindow{.recent = 16, .sinks = 2}, quant::MiKV<8, 2, evict::Tova>{.important = 0.5, .block = 4, .least = 13}), 8, {-1, 0, 1, 2, 3, 4, 6, 8}, 4, again);
}
