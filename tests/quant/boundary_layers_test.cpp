#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/boundary_layers.hpp>
#include <kvcondense/quant/hadamard.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/quant/turboquant.hpp>

#include <support/cache_rig.hpp>
#include <support/fill.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using quant::BoundaryLayers;

namespace {

/// Which layers of six have codes, and whether their rows come back as they went in.
template <class Stage>
std::string coded_layers(const Stage& stage) {
  const CacheShape shape{.layers = 6, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
  REQUIRE(stage.validate(shape) == Status::ok);
  test::CacheRig rig(shape, recipe(stage), 300, 200);
  std::mt19937 random(3);
  std::string said;
  for (index_t l = 0; l < 6; ++l) {
    const test::Tokens t(shape, 200, random);
    REQUIRE(rig.cache.append(rig.ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, l) == Status::ok);
    std::vector<float> k(200 * 64), v = k;
    bool same = true, codes = false;
    for (index_t h = 0; h < 2; ++h) {
      const auto& head = rig.cache.layers()[l].heads[h];
      codes = codes || head.keys.coded().live() > 0 || head.values.coded().live() > 0;
      REQUIRE(rig.cache.read(l, h, 0, test::view2(k.data(), 200, 64), test::view2(v.data(), 200, 64)) == Status::ok);
      for (std::size_t i = 0; i < k.size(); ++i) {
        const std::size_t at = static_cast<std::size_t>(h) * 200 * 64 + i;
        same = same && std::fabs(k[i] - t.k[at]) <= 0x1p-10f * std::fabs(t.k[at]) + 1e-6f && std::fabs(v[i] - t.v[at]) <= 0x1p-10f * std::fabs(t.v[at]) + 1e-6f;
      }
    }
    REQUIRE(same == !codes);
    said += codes ? 'c' : '.';
  }
  return said;
}

}  // namespace

TEST_CASE("boundary_layers: the first and the last stay exact, whatever codes the others", "[quant][boundary_layers][cache]") {
  REQUIRE(coded_layers(BoundaryLayers<quant::GroupInt<4>>{}) == "..cc..");
  REQUIRE(coded_layers(BoundaryLayers<quant::Kivi<2>>{.first = 1, .last = 0}) == ".ccccc");
  REQUIRE(coded_layers(BoundaryLayers<quant::TurboQuant>{.first = 0, .last = 3}) == "ccc...");
  REQUIRE(coded_layers(BoundaryLayers<quant::Hadamard<quant::GroupInt<4>>>{.first = 0, .last = 1}) == "ccccc.");
  REQUIRE(coded_layers(quant::Hadamard<BoundaryLayers<quant::GroupInt<4>>>{.base = {.first = 5, .last = 0}}) == ".....c");
  REQUIRE(coded_layers(BoundaryLayers<quant::GroupInt<4>>{.first = 0, .last = 0}) == "cccccc");
  REQUIRE(coded_layers(BoundaryLayers<quant::GroupInt<4>>{.first = 9, .last = 9}) == "......");
}

TEST_CASE("boundary_layers: what is refused, and what it passes on", "[quant][boundary_layers]") {
  const CacheShape shape{.layers = 6, .head_dim = 64};
  REQUIRE(BoundaryLayers<>{.first = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(BoundaryLayers<>{.last = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(BoundaryLayers<quant::GroupInt<4>>{.base = {.group_size = 48}}.validate(shape) == Status::invalid_argument);
  const BoundaryLayers<quant::Kivi<2>> kivi{.base = {.sinks = 3}};
  REQUIRE(kivi.sinks == 3);
  REQUIRE(kivi.key_flush(shape, {2, 0}) == quant::Kivi<2>{}.key_flush());
  REQUIRE(kivi.key_flush(shape, {0, 0}) == Flush{0, 0});
}
