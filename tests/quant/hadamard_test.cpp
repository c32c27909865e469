#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/hadamard.hpp>
#include <kvcondense/quant/kivi.hpp>

#include <support/cache_rig.hpp>
#include <support/fill.hpp>
#include <support/naive_cache.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

using Map = prim::RowTransform<Cpu, prim::Hadamard>;

double dot(const float* a, const float* b, index_t n) {
  double sum = 0;
  for (index_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

double square_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += (static_cast<double>(a[i]) - static_cast<double>(b[i])) * (static_cast<double>(a[i]) - static_cast<double>(b[i]));
  return sum;
}

/// Rows after they went through a quantizer of one row's numbers.
template <int Bits>
std::vector<float> coded(std::vector<float> rows, index_t dim, index_t group) {
  using Page = prim::PageCodec<Cpu, prim::GroupInt<Bits>>;
  const prim::GroupInt<Bits> codec{prim::GroupAxis::token, group};
  const auto n = static_cast<index_t>(rows.size()) / dim;
  std::vector<std::byte> bytes(codec.page_bytes(n, dim));
  const prim::PageSpan page{bytes.data(), n, dim};
  REQUIRE(Page::encode(codec, page, 0, n, {rows.data(), n, dim}) == 0);
  Page::decode(codec, page, 0, n, {rows.data(), n, dim});
  return rows;
}

}  // namespace

TEST_CASE("hadamard: the worked example's rows, products and errors", "[quant][hadamard][oracle]") {
  const auto o = test::load_oracle("quantization.json", "L_hadamard");
  const auto plain = test::floats(o.at("x"));
  auto x = plain, q = test::floats(o.at("q"));
  const auto want = test::floats(o.at("Hx")), want_q = test::floats(o.at("Hq"));
  Map::forward({}, 8, {x.data(), 1, 8});
  Map::query({}, 8, {q.data(), 1, 8});
  for (std::size_t i = 0; i < 8; ++i) {
    REQUIRE(x[i] == Approx(want[i]).epsilon(1e-6));
    REQUIRE(q[i] == Approx(want_q[i]).margin(1e-6));
  }
  REQUIRE(dot(q.data(), x.data(), 8) == Approx(o.at("dot_rotated").get<double>()).epsilon(1e-6));
  REQUIRE(square_error(plain, coded<4>(plain, 8, 0)) == Approx(o.at("int4_sq_err_plain").get<double>()).epsilon(2e-3));
  auto back = coded<4>(x, 8, 0);
  Map::backward({}, 8, {back.data(), 1, 8});
  REQUIRE(square_error(plain, back) == Approx(o.at("int4_sq_err_rotated").get<double>()).epsilon(2e-3));
}

TEST_CASE("hadamard: lengths and products stay, and backward undoes forward", "[quant][hadamard]") {
  const index_t dim = GENERATE(1, 2, 64, 80, 96, 112, 128, 256);
  const auto [block, seed, overlap] =
      GENERATE(table<index_t, std::uint64_t, bool>({{0, 0, false}, {0, 9, false}, {1, 5, false}, {16, 0, false}, {16, 3, false}, {0, 0, true}, {0, 7, true}}));
  const prim::Hadamard t{block, seed, overlap};
  CAPTURE(dim, block, seed, overlap);
  if (!t.valid(dim)) {
    REQUIRE(dim % block != 0);
    return;
  }
  std::vector<float> rows(static_cast<std::size_t>(3 * (dim + 5)));  // rows with room between them
  test::fill_normal(rows.data(), rows.size(), 8);
  auto mapped = rows;
  const index_t step = dim + 5;
  Map::forward(t, dim, {mapped.data(), 3, step});
  for (index_t a = 0; a < 3; ++a) {
    for (index_t b = 0; b < 3; ++b)
      REQUIRE(dot(mapped.data() + a * step, mapped.data() + b * step, dim) ==
              Approx(dot(rows.data() + a * step, rows.data() + b * step, dim)).epsilon(1e-5).margin(1e-4));
    for (index_t i = dim; i < step; ++i)
      REQUIRE(mapped[static_cast<std::size_t>(a * step + i)] == rows[static_cast<std::size_t>(a * step + i)]);
  }
  if (dim >= 64 && !t.identity()) REQUIRE(mapped != rows);
  Map::backward(t, dim, {mapped.data(), 3, step});
  for (std::size_t i = 0; i < rows.size(); ++i) REQUIRE(mapped[i] == Approx(rows[i]).margin(1e-5));
}

TEST_CASE("hadamard: what is no power of two, or does not divide, is refused", "[quant][hadamard]") {
  REQUIRE_FALSE(prim::Hadamard{12, 0}.valid(96));
  REQUIRE_FALSE(prim::Hadamard{32, 0}.valid(80));
  REQUIRE_FALSE(prim::Hadamard{-1, 0}.valid(64));
  REQUIRE(prim::Hadamard{}.size(80) == 16);
  REQUIRE(prim::Hadamard{}.size(96) == 32);
  REQUIRE(prim::Hadamard{0, 0, true}.size(80) == 64);
  REQUIRE_FALSE(prim::Hadamard{16, 0, true}.valid(80));
  const CacheShape shape{.head_dim = 64};
  REQUIRE(quant::Hadamard<>{.block = 24}.validate(shape) == Status::invalid_argument);
  REQUIRE(quant::Hadamard<quant::Kivi<2>>{}.validate(shape) == Status::incompatible);
  REQUIRE(quant::Hadamard<quant::Kivi<2>>{.spread_offsets = true}.validate(shape) == Status::ok);
  REQUIRE(quant::Hadamard<quant::Kivi<2>>{.keys = false}.validate(shape) == Status::ok);
}

TEST_CASE("hadamard: errors on outlier and offset channels follow the published trends", "[quant][hadamard][oracle]") {
  const auto tables = test::load_oracle("quantization.json", "Y2_trends").at("tables");
  constexpr index_t tokens = 4096, dim = 128;
  std::vector<float> k(static_cast<std::size_t>(tokens * dim));
  test::fill_normal(k.data(), k.size(), 4);
  // How evenly strong channels spread depends on which they are, and which the published run had is not known:
  // the mean over many choices is compared, and a little more is allowed than elsewhere.
  auto offset = k;
  for (index_t t = 0; t < tokens; ++t)
    for (std::uint64_t i = 0; i < 4; ++i) {
      const auto c = static_cast<index_t>(random_bits(static_cast<std::uint64_t>(t / 64), i) % 32) + 32 * static_cast<index_t>(i);
      k[static_cast<std::size_t>(t * dim + c)] *= 10.0f;
      offset[static_cast<std::size_t>(t * dim + c)] += c < 64 ? 10.0f : -10.0f;
    }
  const auto error = [&](const std::vector<float>& rows, index_t group) {
    auto mapped = rows;
    Map::forward({}, dim, {mapped.data(), tokens, dim});
    auto back = coded<2>(mapped, dim, group);
    Map::backward({}, dim, {back.data(), tokens, dim});
    return square_error(rows, back) / static_cast<double>(rows.size());
  };
  REQUIRE(error(k, 32) == Approx(tables.at("G32").at("hadamard_per_token").at("mse").get<double>()).epsilon(0.15));
  REQUIRE(error(k, 128) == Approx(tables.at("G128").at("hadamard_per_token").at("mse").get<double>()).epsilon(0.15));
  const auto& offsets = tables.at("constant_offset_channels_G32");
  REQUIRE(error(offset, 32) > 2 * offsets.at("per_channel").get<double>());
  REQUIRE(error(offset, 32) < offsets.at("per_token").get<double>() / 2);
}

TEST_CASE("hadamard: a cache attends to rotated codes as to the rows they stand for", "[quant][hadamard][cache]") {
  const auto given = GENERATE(table<index_t, index_t>({{64, 1}, {80, 3}, {96, 4}, {112, 7}, {128, 16}, {256, 2}}));
  const index_t dim = std::get<0>(given), heads = std::get<1>(given);
  const CacheShape shape{.q_heads = 2 * heads, .kv_heads = 2, .head_dim = dim};
  CAPTURE(dim, heads);
  const auto run = [&](auto stage) {
    test::CacheRig rig(shape, recipe(stage), 96, 40);
    std::mt19937 random(3);
    for (const index_t n : {40, 33, 1, 1}) {
      const test::Tokens t(shape, n, random);
      REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
      if (n > 1) REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    }
    // Two pending tokens in the exact window, 73 slots behind them, most of them coded.
    const test::Tokens ask(shape, 2, random);
    std::vector<float> got(static_cast<std::size_t>(shape.q_heads * 2 * dim));
    REQUIRE(rig.cache.attend(rig.ctx, 0, ask.queries(shape), dense_view(got.data(), shape.q_heads, 2, dim)) == Status::ok);
    std::vector<float> k(static_cast<std::size_t>(75 * dim)), v = k;
    double worst = 0;
    for (index_t h = 0; h < 2; ++h) {
      REQUIRE(rig.cache.read(0, h, 0, test::view2(k.data(), 75, dim), test::view2(v.data(), 75, dim)) == Status::ok);
      for (index_t g = 0; g < heads; ++g)
        for (index_t i = 0; i < 2; ++i) {
          const index_t q = h * heads + g;
          std::vector<double> p(static_cast<std::size_t>(74 + i)), o(static_cast<std::size_t>(dim));
          double sum = 0;
          for (std::size_t t = 0; t < p.size(); ++t) {
            const double s = dot(&ask.queries(shape)(q, i, 0), k.data() + static_cast<index_t>(t) * dim, dim);
            sum += p[t] = std::exp(s / std::sqrt(static_cast<double>(dim)));
          }
          for (std::size_t t = 0; t < p.size(); ++t)
            for (std::size_t d = 0; d < o.size(); ++d) o[d] += p[t] / sum * static_cast<double>(v[t * o.size() + d]);
          for (std::size_t d = 0; d < o.size(); ++d)
            worst = std::max(worst, std::fabs(o[d] - static_cast<double>(got[static_cast<std::size_t>((q * 2 + i) * dim) + d])));
        }
    }
    REQUIRE(worst < 4e-4);  // docs/numerics.md: products of codes
    REQUIRE(rig.cache.layers()[0].heads[0].keys.coded().live() > 60);
    return got;
  };
  const auto rotated = run(quant::Hadamard<quant::GroupInt<4>>{.base = {.group_size = 0, .residual_window = 8}});
  const auto keys_only = run(quant::Hadamard<quant::GroupInt<4>>{.base = {.group_size = 0, .residual_window = 8}, .values = false});
  const auto signs = run(quant::Hadamard<quant::GroupInt<4>>{.base = {.group_size = 0, .residual_window = 8}, .seed = 4});
  REQUIRE(rotated != keys_only);
  REQUIRE(rotated != signs);
}
