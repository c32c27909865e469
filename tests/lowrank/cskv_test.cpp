#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/check_snapshot.hpp>
#include <support/oracle.hpp>
#include <support/random_bases.hpp>

using namespace kvcondense;

TEST_CASE("cskv: the window tumbles as in a worked case", "[lowrank][cskv]") {
  const auto oracle = test::load_oracle("lowrank.json", "cskv_window");
  const CacheShape s{.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 16};
  const test::RandomBases keys(1, 1, 16, 1, false, true), values(1, 1, 16, 2, false, true);
  const NamedBases list[] = {{"cskv", keys.view(), values.view()}};
  test::CacheRig rig(s, recipe(lowrank::Cskv{.window = oracle["params"]["window"].get<index_t>(), .bases = {list, 1}}), 64, 16);
  std::mt19937 random(1);
  const auto& head = rig.cache.layers()[0].heads[0];
  const auto append = [&](index_t n) {
    const test::Tokens t(s, n, random);
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(s), t.values(s)) == Status::ok);
  };
  append(oracle["inputs"]["prompt"].get<index_t>());
  REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
  for (const auto* column : {&head.keys, &head.values}) {
    REQUIRE(column->coded().live() == oracle["expected"]["prefill_compressed"].get<index_t>());
    REQUIRE(column->window().live() == oracle["expected"]["prefill_exact"].get<index_t>());
  }
  for (const auto& step : oracle["expected"]["trace"]) {
    append(1);
    REQUIRE(head.keys.window().live() == step["exact_used_in_attention"].get<index_t>());
    REQUIRE(head.keys.coded().live() == step["compressed_used"].get<index_t>());
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    REQUIRE(head.keys.window().live() == step["exact_after"].get<index_t>());
    REQUIRE(head.values.coded().live() == step["compressed_after"].get<index_t>());
    REQUIRE(rig.cache.slots(0, 0) == step["total"].get<index_t>());
  }
}

TEST_CASE("cskv: bytes of a worked case", "[lowrank][cskv]") {
  const auto oracle = test::load_oracle("lowrank.json", "cskv_bytes");
  const auto& in = oracle["inputs"];
  constexpr index_t dim = 128;
  const index_t heads = in["width"].get<index_t>() / dim, window = in["window"].get<index_t>(), tokens = in["T"].get<index_t>();
  const CacheShape s{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = dim};  // one of the heads
  const test::RandomBases keys(1, 1, dim, 1, false, true), values(1, 1, dim, 2, false, true);
  const NamedBases list[] = {{"cskv", keys.view(), values.view()}};
  const double density = oracle["params"]["k_density"].get<double>();
  test::CacheRig rig(s, recipe(lowrank::Cskv{.keep = density, .value_keep = density, .window = window, .bases = {list, 1}}), tokens + window, 256);
  std::mt19937 random(1);
  for (index_t done = 0; done < tokens; done += 256) {
    const test::Tokens t(s, 256, random);
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(s), t.values(s)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
  }
  const test::Tokens t(s, window, random);  // the fullest window there is
  REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(s), t.values(s)) == Status::ok);
  const auto& head = rig.cache.layers()[0].heads[0];
  const auto payload = [](const auto& segment) {
    return static_cast<std::size_t>(segment.live()) * segment.page_payload() / static_cast<std::size_t>(segment.page_slots());
  };
  REQUIRE(head.keys.coded().dim() * heads == oracle["expected"]["rank_each"].get<index_t>());
  REQUIRE(static_cast<std::size_t>(heads) * (payload(head.keys.coded()) + payload(head.values.coded())) ==
          oracle["expected"]["compressed"].get<std::size_t>());
  REQUIRE(static_cast<std::size_t>(heads) * (payload(head.keys.window()) + payload(head.values.window())) ==
          oracle["expected"]["window_bytes"].get<std::size_t>());
  REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
}

TEST_CASE("cskv: raw keys are reconstructed and rotated, with 4-bit coordinates too", "[lowrank][cskv]") {
  const CacheShape s{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  const test::RandomBases keys(2, 2, 32, 1, true, true), values(2, 2, 32, 2, true, true);
  const NamedBases list[] = {{"cskv", keys.view(KeyForm::raw), values.view()}};
  const lowrank::Cskv cskv{.window = 8, .bases = {list, 1}};
  test::exercise(s, recipe(cskv, position::Rerotate{}), 1, 30, 20.0);
  test::exercise(s, recipe(cskv, position::Reindex{}), 2, 30, 20.0);
  test::exercise(s, recipe(cskv, position::Rerotate{}, quant::Kivi<4>{.group_size = 8, .residual_window = 8}), 3, 30, 20.0);
  REQUIRE(make_cache<Cpu>(s, recipe(cskv)).status() == Status::incompatible);
  REQUIRE(make_cache<Cpu>(s, recipe(lowrank::Cskv{.window = 0, .bases = {list, 1}}, position::Rerotate{})).status() == Status::invalid_argument);
}
