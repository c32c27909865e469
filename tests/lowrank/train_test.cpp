#include <random>

#include <catch2/catch.hpp>

#include <kvcondense/lowrank/fit/train.hpp>
#include <support/eigen_json.hpp>

using namespace kvcondense;
using namespace kvcondense::lowrank;

namespace {

/// Keys that vary most where queries do not look, and values that vary most where the model does not look.
fit::HeadText text(std::mt19937& random, index_t tokens, index_t dim) {
  std::normal_distribution<float> normal;
  const auto draw = [&](index_t rows) { return Eigen::MatrixXf::NullaryExpr(rows, dim, [&] { return normal(random); }).eval(); };
  fit::HeadText t{{draw(tokens), draw(tokens)}, draw(tokens), draw(tokens)};
  t.keys.leftCols(dim / 2) *= 3.0f;
  t.values.leftCols(dim / 2) *= 3.0f;
  for (auto& q : t.queries) q.leftCols(dim / 2) *= 0.05f, q.rightCols(dim / 2) *= 2.0f;
  return t;
}

}  // namespace

TEST_CASE("fit: training finds what attention needs, where principal directions do not", "[lowrank][train]") {
  constexpr index_t dim = 16;
  std::mt19937 random(1);
  std::vector<fit::HeadText> texts;
  for (int i = 0; i < 3; ++i) texts.push_back(text(random, 96, dim));
  fit::Moments k(dim), v(dim);
  for (const auto& t : texts) k.add(t.keys.cast<double>()), v.add(t.values.cast<double>());
  fit::Matrix metric = fit::Matrix::Identity(dim, dim);
  metric.topLeftCorner(dim / 2, dim / 2) *= 0.001;
  const fit::Distiller distiller(texts, {metric, metric}, 0.25, 5), elsewhere({text(random, 96, dim)}, {metric, metric}, 0.25, 6);
  fit::CentredBasis keys{fit::principal(k, true)->columns, k.mean()}, values{fit::principal(v, true)->columns, v.mean()};
  const double whole = distiller.loss(keys, dim, values, dim), before = distiller.loss(keys, 8, values, 8);
  const double unseen = elsewhere.loss(keys, 8, values, 8);
  REQUIRE(whole < 1e-9);
  distiller.train(keys, values, {.steps = 600, .rate = 0.1, .tile = 4});
  const double after = distiller.loss(keys, 8, values, 8);
  REQUIRE(after < 0.6 * before);
  REQUIRE(elsewhere.loss(keys, 8, values, 8) < 0.8 * unseen);  // of a text that it never saw
  REQUIRE(distiller.loss(keys, dim, values, dim) < 1e-9);
  REQUIRE(test::farthest(keys.columns.transpose() * keys.columns, fit::Matrix::Identity(dim, dim)) < 1e-9);
  REQUIRE(test::farthest(values.columns.transpose() * values.columns, fit::Matrix::Identity(dim, dim)) < 1e-9);
  for (const index_t r : {4, 12}) REQUIRE(distiller.loss(keys, r, values, r) < 1.0);
  REQUIRE(distiller.loss(keys, 12, values, 12) < after);
  REQUIRE(after < distiller.loss(keys, 4, values, 4));
}

TEST_CASE("fit: reconstruction goes from any factors to those of least error", "[lowrank][train]") {
  std::mt19937 random(2);
  std::normal_distribution<double> normal;
  fit::Matrix x = fit::Matrix::NullaryExpr(300, 10, [&] { return normal(random); });
  for (index_t i = 0; i < 10; ++i) x.col(i) *= std::pow(0.7, static_cast<double>(i));
  const fit::Matrix c = x.transpose() * x / 300;
  const auto best = fit::principal(c);
  const double least = best->energy.tail(6).sum() / c.trace();
  fit::Factors f;
  f.encode = fit::Matrix::NullaryExpr(10, 4, [&] { return normal(random) * 0.3; });
  f.decode = f.encode;
  fit::Factors same = f;
  const double start = fit::fit_reconstruction(c, same, 0, 0.02);
  const double end = fit::fit_reconstruction(c, f, 2000, 0.02);
  REQUIRE(end < start);
  REQUIRE(end == Approx(least).epsilon(0.02));
  // By turns of least squares, from the same start.
  fit::alternate(c, same, 60);
  const fit::Matrix left = fit::Matrix::Identity(10, 10) - same.encode * same.decode.transpose();
  REQUIRE((left.transpose() * c * left).trace() / c.trace() == Approx(least).epsilon(0.02));
  REQUIRE(fit::fit_reconstruction(fit::Matrix::Zero(3, 3), f, 10, 0.1) == 0.0);
}
