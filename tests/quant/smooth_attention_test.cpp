#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/hadamard.hpp>
#include <kvcondense/quant/qserve.hpp>
#include <kvcondense/quant/smooth_attention.hpp>
#include <kvcondense/quant/turboquant.hpp>

#include <support/cache_rig.hpp>
#include <support/fill.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using quant::SmoothAttention;

namespace {

/// The error of logits against plain keys with two strong channels, and the factors of head 0.
template <class Stage>
double logit_error(const Stage& stage, index_t dim, std::vector<float>* state = nullptr) {
  const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = dim};
  REQUIRE(stage.validate(shape) == Status::ok);
  test::CacheRig rig(shape, recipe(stage), 220, 200);
  std::mt19937 random(3);
  test::Tokens t(shape, 200, random);
  for (std::size_t i = 0; i < t.k.size(); ++i)
    if (i % static_cast<std::size_t>(dim) == 5 || i % static_cast<std::size_t>(dim) == 40) t.k[i] *= 16.0f;
  REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
  std::vector<float> unused;
  const auto& head = rig.cache.layers()[0].heads[0];
  REQUIRE(head.keys.coded().live() == 200);
  if constexpr (requires { stage.alpha; }) {
    if (state == nullptr) state = &unused;
    const auto found = head.keys.map().state();
    state->assign(found.begin(), found.end());
    for (index_t c = 0; c < dim; ++c) {
      float top = 0;
      for (index_t i = 0; i < 200; ++i) top = std::max(top, std::fabs(t.k[static_cast<std::size_t>(i * dim + c)]));
      // fp16 holds what the exact window gives on.
      REQUIRE((*state)[static_cast<std::size_t>(c)] == Approx(std::pow(top, -stage.alpha)).epsilon(1e-3));
    }
  }
  std::vector<float> k(static_cast<std::size_t>(200 * dim)), v = k;
  REQUIRE(rig.cache.read(0, 0, 0, test::view2(k.data(), 200, dim), test::view2(v.data(), 200, dim)) == Status::ok);
  double off = 0;
  const test::Tokens ask(shape, 8, random);
  for (index_t q = 0; q < 8; ++q)
    for (index_t i = 0; i < 200; ++i) {
      double d = 0;
      for (index_t c = 0; c < dim; ++c)
        d += static_cast<double>(ask.queries(shape)(0, q, c)) * static_cast<double>(k[static_cast<std::size_t>(i * dim + c)] - t.k[static_cast<std::size_t>(i * dim + c)]);
      off += d * d;
    }
  return off;
}

}  // namespace

TEST_CASE("smooth_attention: factors are powers of the largest numbers, and logits err less", "[quant][smooth_attention][cache]") {
  const index_t dim = GENERATE(64, 80, 128);
  const quant::QServe<4> base{};
  const double plain = logit_error(base, dim);
  std::vector<float> half, most;
  REQUIRE(logit_error(SmoothAttention<quant::QServe<4>>{.base = base}, dim, &half) < plain / 3);
  REQUIRE(logit_error(SmoothAttention<quant::QServe<4>>{.base = base, .alpha = 1.0f}, dim, &most) < plain);
  REQUIRE(half != most);
}

TEST_CASE("smooth_attention: attention is that of the rows that are read back", "[quant][smooth_attention][cache]") {
  const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 80};
  test::CacheRig rig(shape, recipe(SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 16, .residual_window = 4}}), 120, 100);
  std::mt19937 random(3);
  const test::Tokens t(shape, 100, random), ask(shape, 1, random);
  REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
  REQUIRE(rig.cache.append(rig.ctx, 0, ask.keys(shape), ask.values(shape)) == Status::ok);
  std::vector<float> got(6 * 80), k(101 * 80), v = k;
  REQUIRE(rig.cache.attend(rig.ctx, 0, ask.queries(shape), dense_view(got.data(), 6, 1, 80)) == Status::ok);
  for (index_t q = 0; q < 6; ++q) {
    REQUIRE(rig.cache.read(0, q / 3, 0, test::view2(k.data(), 101, 80), test::view2(v.data(), 101, 80)) == Status::ok);
    std::vector<double> o(80);
    double sum = 0;
    for (std::size_t i = 0; i < 101; ++i) {
      double s = 0;
      for (std::size_t c = 0; c < 80; ++c) s += static_cast<double>(ask.queries(shape)(q, 0, static_cast<index_t>(c))) * static_cast<double>(k[i * 80 + c]);
      const double p = std::exp(s / std::sqrt(80.0));
      sum += p;
      for (std::size_t c = 0; c < 80; ++c) o[c] += p * static_cast<double>(v[i * 80 + c]);
    }
    for (std::size_t c = 0; c < 80; ++c) REQUIRE(static_cast<double>(got[static_cast<std::size_t>(q * 80) + c]) == Approx(o[c] / sum).margin(2e-5));
  }
}

TEST_CASE("smooth_attention: factors wait for enough rows, so that a cache that begins with one token errs no more", "[quant][smooth_attention][cache]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 64};
  const auto worst = [&](index_t least) {
    test::CacheRig rig(shape, recipe(SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 16, .residual_window = 0}, .alpha = 0.7f, .least = least}), 120, 100);
    std::mt19937 random(3);
    std::vector<float> keys;
    for (index_t n = 0; n < 100; ++n) {
      const test::Tokens t(shape, 1, random);
      REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
      REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
      keys.insert(keys.end(), t.k.begin(), t.k.begin() + 64);
    }
    std::vector<float> k(100 * 64), v = k;
    REQUIRE(rig.cache.read(0, 0, 0, test::view2(k.data(), 100, 64), test::view2(v.data(), 100, 64)) == Status::ok);
    float most = 0;
    for (std::size_t i = 0; i < k.size(); ++i) most = std::max(most, std::abs(k[i] - keys[i]));
    return most;
  };
  const float one = worst(0), many = worst(32);
  CAPTURE(one, many);
  REQUIRE(many < 1.0f);
  REQUIRE(one > 3 * many);
}

TEST_CASE("smooth_attention: what is refused", "[quant][smooth_attention]") {
  const CacheShape shape{.head_dim = 64};
  REQUIRE(SmoothAttention<>{}.validate(shape) == Status::ok);
  REQUIRE(SmoothAttention<>{.least = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(SmoothAttention<>{.alpha = 0.0f}.validate(shape) == Status::invalid_argument);
  REQUIRE(SmoothAttention<>{.alpha = 1.5f}.validate(shape) == Status::invalid_argument);
  REQUIRE(SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 48}}.validate(shape) == Status::invalid_argument);
  REQUIRE(SmoothAttention<quant::TurboQuant>{}.validate(shape) == Status::incompatible);
  REQUIRE(SmoothAttention<quant::Hadamard<>>{}.validate(shape) == Status::incompatible);
  REQUIRE(SmoothAttention<quant::Hadamard<>>{.base = {.keys = false}}.validate(shape) == Status::ok);
  using Map = prim::ChannelScale;
  REQUIRE(Map{Map::Rule::root_max, 0.5f}.fingerprint() != Map{Map::Rule::root_max, 0.6f}.fingerprint());
}
