#include <algorithm>
#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/check_snapshot.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

}  // namespace

TEST_CASE("online_pca: any calls", "[lowrank][online_pca]") {
  std::uint32_t seed = 100;
  for (const bool center : {false, true}) {
    lowrank::OnlinePca pca{.window = 5, .least = 20, .center = center};
    test::exercise(shape, recipe(pca), ++seed, 30, 12.0);
    test::exercise(shape, recipe(pca, position::Rerotate{}), ++seed, 30, 12.0);
    test::exercise(shape, recipe(evict::SnapKV{.tokens = 40, .window = 8}, pca, quant::GroupInt<8>{.group_size = 8}), ++seed, 30, 12.0);
  }
}

TEST_CASE("online_pca: rows of a subspace come back, and the basis is counted", "[lowrank][online_pca]") {
  const CacheShape s{.layers = 1, .q_heads = 2, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  for (const bool center : {false, true}) {
    const lowrank::OnlinePca pca{.keep = 0.25, .value_keep = 0.25, .window = 10, .least = 20, .center = center};
    test::CacheRig rig(s, recipe(pca), 256, 256);
    std::mt19937 random(9);
    std::normal_distribution<float> normal;
    const index_t n = 200, rank = center ? 15 : 16;  // and a mean
    test::Tokens t(s, n, random);
    for (auto* rows : {&t.k, &t.v}) {
      std::vector<float> axes(static_cast<std::size_t>(64 * rank)), mean(64);
      for (float& x : axes) x = normal(random);
      for (float& x : mean) x = center ? normal(random) * 3 : 0.0f;
      for (std::size_t i = 0; i < rows->size(); i += 64) {
        std::copy(mean.begin(), mean.end(), rows->begin() + static_cast<std::ptrdiff_t>(i));
        for (index_t r = 0; r < rank; ++r) {
          const float w = normal(random);
          for (std::size_t d = 0; d < 64; ++d) (*rows)[i + d] += w * axes[static_cast<std::size_t>(r) * 64 + d];
        }
      }
    }
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(s), t.values(s)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    std::vector<float> k(static_cast<std::size_t>(n * 64)), v(k.size());
    for (index_t h = 0; h < 2; ++h) {
      const auto& head = rig.cache.layers()[0].heads[h];
      REQUIRE(head.keys.coded().live() == n - 10);
      REQUIRE(head.keys.coded().dim() == 16);
      REQUIRE(head.keys.map().state().size_bytes() == sizeof(float) * static_cast<std::size_t>(16 * 64 + (center ? 64 : 0)));
      REQUIRE(rig.cache.read(0, h, 0, dense_view(k.data(), n, 64), dense_view(v.data(), n, 64)) == Status::ok);
      double worst = 0;
      for (index_t i = 0; i < n; ++i)
        for (index_t d = 0; d < 64; ++d) {
          const auto at = static_cast<std::size_t>(i * 64 + d);
          worst = std::max({worst, std::fabs(static_cast<double>(k[at] - t.keys(s)(h, i, d))),
                            std::fabs(static_cast<double>(v[at] - t.values(s)(h, i, d)))});
        }
      REQUIRE(worst < 2e-4);
    }
    REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
  }
}

TEST_CASE("online_pca: nothing is coded before there are rows enough", "[lowrank][online_pca]") {
  const lowrank::OnlinePca pca{.window = 4, .least = 20};
  test::CacheRig rig(shape, recipe(pca), 256, 64);
  std::mt19937 random(1);
  for (index_t n = 1; n <= 30; ++n) {
    const test::Tokens t(shape, 1, random);
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    REQUIRE(rig.cache.layers()[0].heads[0].keys.coded().live() == (n < 24 ? 0 : n - 4));
  }
}

TEST_CASE("online_pca: rows that are all alike, or all zero", "[lowrank][online_pca]") {
  for (const float x : {0.0f, 2.0f})
    for (const bool center : {false, true}) {
      test::CacheRig rig(shape, recipe(lowrank::OnlinePca{.window = 0, .least = 1, .center = center}), 64, 64);
      const std::vector<float> rows(static_cast<std::size_t>(2 * 40 * 32), x);
      REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(rows.data(), 2, 40, 32), dense_view(rows.data(), 2, 40, 32)) == Status::ok);
      REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
      std::vector<float> k(40 * 32), v(40 * 32);
      REQUIRE(rig.cache.read(0, 0, 0, dense_view(k.data(), 40, 32), dense_view(v.data(), 40, 32)) == Status::ok);
      for (const float y : k) REQUIRE(y == Approx(x).margin(2e-3));
    }
}

TEST_CASE("online_pca: a basis survives forks and files, and a damaged one is refused", "[lowrank][online_pca]") {
  test::check_snapshot(shape, recipe(lowrank::OnlinePca{.window = 4, .least = 8, .center = true}),
                       recipe(lowrank::OnlinePca{.keep = 0.25, .window = 4, .least = 8, .center = true}));
}

TEST_CASE("online_pca: refused fields", "[lowrank][online_pca]") {
  const auto status = [&](const lowrank::OnlinePca& p, auto... more) { return make_cache<Cpu>(shape, recipe(p, more...)).status(); };
  REQUIRE(status({.keep = 0.0}) == Status::invalid_argument);
  REQUIRE(status({.value_keep = 1.1}) == Status::invalid_argument);
  REQUIRE(status({.tile = 0}) == Status::invalid_argument);
  REQUIRE(status({.least = -1}) == Status::invalid_argument);
  REQUIRE(status({.keys = false, .values = false}) == Status::invalid_argument);
  // Two transforms, each found from what the other has not found yet.
  REQUIRE(status({}, quant::ZipCache{}) == Status::incompatible);
}
