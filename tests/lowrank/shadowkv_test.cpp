#include <limits>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/check_snapshot.hpp>

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

TEST_CASE("shadowkv: files and forks", "[lowrank][shadowkv]") {
  const lowrank::ShadowKV stage{.keep = 0.25, .chunk = 4, .local_chunks = 1, .least = 16};
  test::check_snapshot(shape, recipe(stage, position::Rerotate{}), recipe(lowrank::ShadowKV{.keep = 0.5, .chunk = 4}, position::Rerotate{}));
}
