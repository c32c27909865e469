#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/channel_clusters.hpp>
#include <kvcondense/quant/rotatekv.hpp>

#include <quant/codec_page.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using quant::RotateKv;

namespace {

double error(const CacheShape& shape, const RotateKv& stage, bool reorder) {
  std::mt19937 random(3);
  test::Tokens t(shape, 200, random);
  const index_t dim = shape.head_dim;
  for (index_t i = 0; i < 200; ++i)
    for (const index_t c : {index_t{5}, dim / 2, dim - 1}) t.k[static_cast<std::size_t>(i * dim + c)] += 8.0f;
  std::vector<float> clusters(static_cast<std::size_t>(dim));
  RotateKv all = stage;
  if (reorder) {
    auto rotated = t.k;
    prim::RowTransform<Cpu, prim::Hadamard>::forward({0, stage.seed, true}, dim, {rotated.data(), 200, dim});
    REQUIRE(quant::order_by_sums(TensorView<const float, 2>(test::view2<const float>(rotated.data(), 200, dim)), stage.group_size, clusters) == Status::ok);
    all.key_clusters = {clusters.data(), shape.layers, shape.kv_heads, dim};
  }
  REQUIRE(all.validate(shape) == Status::ok);
  test::CacheRig rig(shape, recipe(all), 220, 200);
  REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
  std::vector<float> k(t.k.size()), v(t.v.size());
  REQUIRE(rig.cache.read(0, 0, 0, test::view2(k.data(), 200, dim), test::view2(v.data(), 200, dim)) == Status::ok);
  for (std::size_t i = 0; i < static_cast<std::size_t>(stage.sinks * dim); ++i) REQUIRE(k[i] == Approx(t.k[i]).epsilon(1e-3).margin(1e-3));
  double off = 0;
  for (std::size_t i = 0; i < k.size(); ++i) off += std::pow(static_cast<double>(k[i] - t.k[i]), 2);
  return off / static_cast<double>(k.size());
}

}  // namespace

TEST_CASE("rotatekv: first tokens stay exact, an order by sums lowers the error of rotated offsets", "[quant][rotatekv][cache]") {
  const index_t dim = GENERATE(64, 96, 128);
  const CacheShape shape{.head_dim = dim};
  const RotateKv stage{.clip = 1.0f, .group_size = 16};
  REQUIRE(error(shape, stage, true) < 0.8 * error(shape, stage, false));
  REQUIRE(error(shape, RotateKv{.bits = 4, .clip = 1.0f, .group_size = 16}, true) < error(shape, stage, true) / 4);
}

TEST_CASE("rotatekv: before RoPE and behind it, attention is what the stored rows give", "[quant][rotatekv][cache]") {
  const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 64};
  const auto run = [&](auto recipe) {
    test::CacheRig rig(shape, recipe, 120, 100);
    std::mt19937 random(3);
    const test::Tokens t(shape, 100, random), ask(shape, 1, random);
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    REQUIRE(rig.cache.append(rig.ctx, 0, ask.keys(shape), ask.values(shape)) == Status::ok);
    std::vector<float> got(static_cast<std::size_t>(6 * 64));
    REQUIRE(rig.cache.attend(rig.ctx, 0, ask.queries(shape), dense_view(got.data(), 6, 1, 64)) == Status::ok);
    return got;
  };
  const RotateKv stage{.bits = 4, .clip = 1.0f, .sinks = 4};
  const auto behind = run(recipe(stage)), exact = run(recipe());
  const auto before = run(recipe(stage, position::Rerotate{})), turned = run(recipe(position::Rerotate{}));
  double off[2] = {}, all = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    off[0] += std::pow(static_cast<double>(behind[i] - exact[i]), 2);
    off[1] += std::pow(static_cast<double>(before[i] - turned[i]), 2);
    all += std::pow(static_cast<double>(exact[i]), 2);
  }
  REQUIRE(off[0] > 0.0);
  REQUIRE(off[0] < 0.1 * all);
  REQUIRE(off[1] < 0.1 * all);
}

TEST_CASE("rotatekv: bits per number are the published ones, and settings that fit nothing are refused", "[quant][rotatekv]") {
  const CacheShape shape{.layers = 1, .head_dim = 128};
  REQUIRE(test::bits_per_number(RotateKv{}.key_codec(shape, {}), 128) == 2.25);
  REQUIRE(RotateKv{}.validate(shape) == Status::ok);
  REQUIRE(RotateKv{}.validate({.head_dim = 80}) == Status::ok);
  REQUIRE(RotateKv{.bits = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(RotateKv{.bits = 5}.validate(shape) == Status::invalid_argument);
  REQUIRE(RotateKv{.clip = 0.0f}.validate(shape) == Status::invalid_argument);
  REQUIRE(RotateKv{.clip = 1.1f}.validate(shape) == Status::invalid_argument);
  REQUIRE(RotateKv{.group_size = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(RotateKv{.residual_window = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(RotateKv{.sinks = -1}.validate(shape) == Status::invalid_argument);
  std::vector<float> c(128, 0.0f);
  REQUIRE(RotateKv{.value_clusters = {c.data(), 1, 1, 128}}.validate(shape) == Status::ok);
  REQUIRE(RotateKv{.value_clusters = {c.data(), 2, 1, 128}}.validate(shape) == Status::invalid_argument);
  c[0] = 3.0f;
  REQUIRE(RotateKv{.value_clusters = {c.data(), 1, 1, 128}}.validate(shape) == Status::invalid_argument);
}
