#include <random>

#include <catch2/catch.hpp>

#include <kvcondense/lowrank/fit/orthogonal.hpp>
#include <support/eigen_json.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::lowrank;
using test::farthest;
using test::matrix;

TEST_CASE("fit: Cayley's map of a worked case and back", "[lowrank][orthogonal]") {
  const auto oracle = test::load_oracle("lowrank.json", "cayley");
  const auto& want = oracle["expected"];
  const fit::Matrix q = fit::cayley(matrix(oracle["inputs"]["X"]));
  REQUIRE(farthest(q, matrix(want["Q"])) < 1e-8);
  REQUIRE(farthest(q.transpose() * q, fit::Matrix::Identity(3, 3)) < 1e-12);
  REQUIRE(q.determinant() == Approx(1.0).margin(1e-12));
  const auto a = fit::inverse_cayley(q);
  REQUIRE(a);
  REQUIRE(farthest(*a, matrix(want["A_recovered"])) < 1e-8);
  REQUIRE(farthest(fit::cayley(matrix(want["X_canonical"])), q) < 1e-8);
  REQUIRE(fit::inverse_cayley(fit::Vector(test::vector(nlohmann::json{1.0, -1.0, -1.0})).asDiagonal()).status() == Status::not_supported);
}

TEST_CASE("fit: steps keep a matrix orthogonal and find a rotation", "[lowrank][orthogonal]") {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  const auto draw = [&] { return fit::Matrix::NullaryExpr(6, 6, [&] { return normal(random); }).eval(); };
  const fit::Matrix target = fit::cayley(draw());
  fit::Matrix q = fit::Matrix::Identity(6, 6);
  fit::RotationSteps steps(6);
  const double before = (q - target).norm();
  for (int i = 0; i < 600; ++i) steps.step(q, 2.0 * (q - target), 0.03 / (1 + 0.01 * i));
  REQUIRE(farthest(q.transpose() * q, fit::Matrix::Identity(6, 6)) < 1e-9);
  REQUIRE((q - target).norm() < 0.05 * before);
}
