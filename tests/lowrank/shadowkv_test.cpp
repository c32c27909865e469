#include <limits>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/check_snapshot.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

}  // namespace

TEST_CASE("shadowkv: raw keys in few coordinates, rotated when they are read, values exact", "[lowrank][shadowkv]") {
  const lowrank::ShadowKV stage{.keep = 0.25, .chunk = 4, .local_chunks = 2, .least = 16};
  test::exercise(shape, recipe(stage, position::Rerotate{}), 1, 40, 12.0);
  test::exercise(shape, recipe(evict::SnapKV{.tokens = 40, .window = 8}, stage, position::Reindex{}, quant::GroupInt<8>{.group_size = 8}), 2, 40, 12.0);
  REQUIRE(make_cache<Cpu>(shape, recipe(stage)).status() == Status::incompatible);
  REQUIRE(make_cache<Cpu>(shape, recipe(lowrank::ShadowKV{.chunk = 0}, position::Rerotate{})).status() == Status::invalid_argument);
  REQUIRE(make_cache<Cpu>(shape, recipe(lowrank::ShadowKV{.keep = 0.0}, position::Rerotate{})).status() == Status::invalid_argument);
  for (const index_t far : {(index_t{1} << 31) / 8 + 1, (index_t{1} << 60) - 1, std::numeric_limits<index_t>::max()})  // times 8
    REQUIRE(lowrank::ShadowKV{.local_chunks = far}.validate(shape) == Status::invalid_argument);
  REQUIRE(lowrank::ShadowKV{.local_chunks = (index_t{1} << 31) / 8}.validate(shape) == Status::ok);
  REQUIRE(lowrank::ShadowKV{.chunk = std::numeric_limits<index_t>::max()}.validate(shape) == Status::invalid_argument);
  REQUIRE(lowrank::ShadowKV{.least = std::numeric_limits<index_t>::max()}.validate(shape) == Status::invalid_argument);
  REQUIRE(lowrank::ShadowKV{.sinks = std::numeric_limits<index_t>::max()}.validate(shape) == Status::invalid_argument);
}

TEST_CASE("shadowkv: whole chunks are coded, the newest stay", "[lowrank][shadowkv]") {
  const lowrank::ShadowKV stage{.keep = 0.5, .chunk = 8, .local_chunks = 4, .least = 16};
  test::CacheRig rig(shape, recipe(stage, position::Rerotate{}), 256, 128);
  std::mt19937 random(1);
  const test::Tokens t(shape, 107, random);
  REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
  const auto& head = rig.cache.layers()[0].heads[1];
  REQUIRE(head.keys.coded().live() == 72);  // of 13 chunks 9; the other 4 and 3 tokens are local
  REQUIRE(head.keys.coded().dim() == 16);
  REQUIRE(head.values.coded().live() == 0);
  // Keys of the paper's part of a layer: 160 of 1024 numbers of a token.
  REQUIRE(lowrank::ShadowKV{}.key_transform({.head_dim = 128}, {}).rank * 8 == 160);
  REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
}

TEST_CASE("shadowkv: the oracle's bytes of coordinates and of keys that stay", "[lowrank][shadowkv]") {
  const auto o = test::load_oracle("lowrank.json", "shadowkv_bytes");
  const auto number = [&](const char* part, const char* key) { return o[part][key].get<std::size_t>(); };
  // One of eight heads, and a 32nd of the tokens: the oracle's are linear in both.
  constexpr std::size_t heads = 8, part = 32;
  const std::size_t tokens = number("inputs", "T") / part;
  const CacheShape s{.layers = 1, .head_dim = static_cast<index_t>(number("inputs", "kv_width") / heads)};
  const lowrank::ShadowKV stage{.keep = static_cast<double>(number("inputs", "rank")) / static_cast<double>(number("inputs", "kv_width")),
                                .chunk = o["inputs"]["chunk"].get<index_t>(), .local_chunks = o["inputs"]["local_chunks"].get<index_t>()};
  test::CacheRig rig(s, recipe(stage, position::Rerotate{}), static_cast<index_t>(tokens), 1024);
  std::mt19937 random(2);
  const test::Tokens t(s, 1024, random);
  for (std::size_t done = 0; done < tokens; done += 1024) {
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(s), t.values(s)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
  }
  const auto& keys = rig.cache.layers()[0].heads[0].keys;
  const std::size_t row = keys.coded().page_payload() / static_cast<std::size_t>(keys.coded().page_slots());
  const std::size_t exact = keys.window().page_payload() / static_cast<std::size_t>(keys.window().page_slots());
  REQUIRE(heads * part * tokens * row == number("expected", "U"));
  REQUIRE(2 * heads * exact * static_cast<std::size_t>(keys.window().live()) == number("expected", "local_KV"));
  REQUIRE(keys.coded().live() + keys.window().live() == static_cast<index_t>(tokens));
  // The paper's directions are of all heads at once: as many numbers for each head as these for all.
  REQUIRE(2 * heads * heads * keys.map().state().size() == number("expected", "SV"));
  REQUIRE(heads * part * tokens * exact == number("expected", "full_K"));
}

TEST_CASE("shadowkv: files and forks", "[lowrank][shadowkv]") {
  const lowrank::ShadowKV stage{.keep = 0.25, .chunk = 4, .local_chunks = 1, .least = 16};
  test::check_snapshot(shape, recipe(stage, position::Rerotate{}), recipe(lowrank::ShadowKV{.keep = 0.5, .chunk = 4}, position::Rerotate{}));
}
