#include <cmath>
#include <limits>
#include <random>

#include <catch2/catch.hpp>

#include <kvcondense/lowrank/blocks/basis_rule.hpp>
#include <kvcondense/lowrank/fit/orthogonal.hpp>
#include <kvcondense/lowrank/fit/principal.hpp>
#include <support/eigen_json.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::lowrank;
using test::farthest;
using test::matrix;

TEST_CASE("fit: principal directions of a worked case, centred and not", "[lowrank][principal]") {
  const auto oracle = test::load_oracle("lowrank.json", "pca_attention");
  const auto& want = oracle["expected"];
  const fit::Matrix k = matrix(oracle["inputs"]["K"]);
  fit::Moments moments(3);
  moments.add(k.topRows(2)), moments.add(fit::Matrix(k.bottomRows(3)));
  REQUIRE(farthest(moments.mean(), test::vector(want["mean_K"])) < 1e-9);
  const auto centred = fit::principal(moments, true), plain = fit::principal(moments, false);
  REQUIRE(centred);
  REQUIRE(plain);
  REQUIRE(farthest(centred->energy, test::vector(want["eigenvalues_centred"])) < 1e-9);
  REQUIRE(farthest(centred->columns, matrix(want["P_centred"])) < 1e-9);
  REQUIRE(farthest(plain->energy, test::vector(want["eigenvalues_uncentred"])) < 1e-9);
  const fit::Matrix latent = (k.rowwise() - moments.mean().transpose()) * centred->columns.leftCols(2);
  REQUIRE(farthest(latent, matrix(want["latent_K"])) < 1e-9);
}

TEST_CASE("fit: the basis that suits queries loses what it says it loses, and less than others", "[lowrank][principal]") {
  const auto oracle = test::load_oracle("lowrank.json", "query_aware_basis");
  const auto& want = oracle["expected"];
  const fit::Matrix k = matrix(oracle["inputs"]["K"]), q = matrix(oracle["inputs"]["Q"]);
  const fit::Matrix ck = k.transpose() * k / static_cast<double>(k.rows()), cq = q.transpose() * q / static_cast<double>(q.rows());
  const auto error = [&](const fit::Matrix& encode, const fit::Matrix& decode) {
    const fit::Matrix lost = k - k * encode * decode.transpose();
    return (q * lost.transpose()).squaredNorm() / static_cast<double>(k.rows() * q.rows());
  };
  const auto pca = fit::principal(ck), stacked = fit::principal(k.transpose() * k + q.transpose() * q);
  const auto aware = fit::query_aware(ck, cq);
  REQUIRE(aware);
  REQUIRE(error(pca->columns.leftCols(1), pca->columns.leftCols(1)) == Approx(want["err_key_pca"].get<double>()).margin(1e-9));
  REQUIRE(error(stacked->columns.leftCols(1), stacked->columns.leftCols(1)) == Approx(want["err_stacked"].get<double>()).margin(1e-9));
  REQUIRE(error(aware->encode.leftCols(1), aware->decode.leftCols(1)) == Approx(want["err_query_aware"].get<double>()).margin(1e-9));
  REQUIRE(aware->energy.tail(2).sum() == Approx(want["predicted_query_aware"].get<double>()).margin(1e-9));
  REQUIRE(farthest(aware->energy, test::vector(want["eigenvalues_weighted"])) < 1e-9);
  REQUIRE(farthest(aware->encode.leftCols(1), matrix(want["encode"])) < 1e-9);
  REQUIRE(farthest(aware->decode.leftCols(1), matrix(want["query_projection"])) < 1e-8);
  REQUIRE(farthest(q * aware->decode.leftCols(1) * (k * aware->encode.leftCols(1)).transpose(), matrix(want["logits_unscaled"])) < 1e-8);
}

TEST_CASE("fit: for any queries and rank the basis that suits them loses what it says, and no other loses less", "[lowrank][principal]") {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  constexpr index_t dim = 24;
  const auto draw = [&](index_t rows, double fall) {
    fit::Matrix x = fit::Matrix::NullaryExpr(rows, dim, [&] { return normal(random); });
    for (index_t i = 0; i < dim; ++i) x.col(i) *= std::pow(fall, static_cast<double>(i));
    return fit::Matrix(x * fit::cayley(fit::Matrix::NullaryExpr(dim, dim, [&] { return 0.3 * normal(random); })));
  };
  const fit::Matrix k = draw(400, 0.8), q = draw(300, 0.7);
  const fit::Matrix ck = k.transpose() * k / 400.0, cq = q.transpose() * q / 300.0;
  const auto error = [&](const fit::Matrix& encode, const fit::Matrix& decode) {
    const fit::Matrix lost = k - k * encode * decode.transpose();
    return (q * lost.transpose()).squaredNorm() / (400.0 * 300.0);
  };
  const auto pca = fit::principal(ck);
  const auto aware = fit::query_aware(ck, cq);
  REQUIRE(aware);
  double last = 1e300;
  for (const index_t r : {1, 2, 4, 8, 12, 20}) {
    CAPTURE(r);
    const double own = error(aware->encode.leftCols(r), aware->decode.leftCols(r)), plain = error(pca->columns.leftCols(r), pca->columns.leftCols(r));
    REQUIRE(own == Approx(aware->energy.tail(dim - r).sum()).epsilon(1e-6));
    REQUIRE(own < 0.99 * plain);
    REQUIRE(own < last);
    last = own;
    for (int other = 0; other < 5; ++other) {  // nor does one beside it
      const fit::Matrix turn = fit::cayley(fit::Matrix::NullaryExpr(dim, dim, [&] { return 0.05 * normal(random); }));
      REQUIRE(error(turn * aware->encode.leftCols(r), turn * aware->decode.leftCols(r)) >= own);
    }
  }
}

TEST_CASE("fit: ranks of Eigen Attention, by running sums of singular values and of energies", "[lowrank][principal]") {
  const auto oracle = test::load_oracle("lowrank.json", "eigen_attention_rank");
  const auto& want = oracle["expected"];
  fit::Moments both(3);
  both.add(matrix(oracle["inputs"]["K"])), both.add(matrix(oracle["inputs"]["Q"]));
  const auto d = fit::principal(both.products);
  REQUIRE(d);
  REQUIRE(farthest(d->energy.cwiseSqrt(), test::vector(want["singular_values"])) < 1e-9);
  const double threshold = oracle["params"]["threshold"].get<double>();
  REQUIRE(rank_by_spread(d->energy.data(), 3, threshold) == want["rank_reference_code"].get<index_t>());
  REQUIRE(rank_by_energy(d->energy.data(), 3, threshold) == want["rank_by_energy"].get<index_t>());
  REQUIRE(rank_by_energy(d->energy.data(), 3, 1.0) == 3);
  REQUIRE(rank_by_energy(d->energy.data(), 3, 0.0001) == 1);
}

TEST_CASE("fit: one basis for two layers loses less than two of half the rank", "[lowrank][principal]") {
  const auto oracle = test::load_oracle("lowrank.json", "xkv");
  const auto& want = oracle["expected"];
  const fit::Matrix a = matrix(oracle["inputs"]["K_layer0"]), b = matrix(oracle["inputs"]["K_layer1"]);
  fit::Matrix both(a.rows(), a.cols() + b.cols());
  both << a, b;
  const auto d = fit::principal(both.transpose() * both);
  REQUIRE(d);
  REQUIRE(farthest(d->energy.head(4).cwiseSqrt(), test::vector(want["joint_singular_values"])) < 1e-7);
  const fit::Matrix back = both * d->columns.leftCols(2) * d->columns.leftCols(2).transpose();
  REQUIRE(farthest(back, matrix(want["joint_reconstruction"])) < 1e-8);
  REQUIRE((both - back).norm() == Approx(want["err_joint"].get<double>()).margin(1e-8));
  const auto apart = [](const fit::Matrix& x) {
    const auto one = fit::principal(x.transpose() * x);
    return (x - x * one->columns.leftCols(1) * one->columns.leftCols(1).transpose()).squaredNorm();
  };
  REQUIRE(std::sqrt(apart(a) + apart(b)) == Approx(want["err_separate"].get<double>()).margin(1e-8));
}

TEST_CASE("fit: nothing, rows that span little, and numbers that are none", "[lowrank][principal]") {
  REQUIRE(fit::principal(fit::Moments(4), true).status() == Status::missing_input);
  REQUIRE(fit::principal(fit::Matrix()).status() == Status::missing_input);
  fit::Matrix bad = fit::Matrix::Identity(3, 3);
  bad(1, 2) = std::numeric_limits<double>::quiet_NaN();
  REQUIRE(fit::principal(bad).status() == Status::invalid_argument);
  REQUIRE(fit::query_aware(bad, fit::Matrix::Identity(3, 3)).status() == Status::invalid_argument);
  REQUIRE(fit::query_aware(fit::Matrix::Identity(3, 3), fit::Matrix::Identity(2, 2)).status() == Status::shape_mismatch);
  REQUIRE(fit::query_aware(fit::Matrix::Identity(3, 3), fit::Matrix::Zero(3, 3)).status() == Status::invalid_argument);

  fit::Moments flat(5);
  fit::Matrix rows = fit::Matrix::Zero(7, 5);
  rows.col(1).setLinSpaced(1, 7), rows.col(3).setLinSpaced(-2, 3);
  flat.add(rows);
  const auto d = fit::principal(flat, false);
  REQUIRE(d);
  REQUIRE(fit::numeric_rank(d->energy) == 2);
  REQUIRE(d->energy.tail(3).isZero(0));
  REQUIRE(farthest(d->columns.transpose() * d->columns, fit::Matrix::Identity(5, 5)) < 1e-12);
  REQUIRE(farthest(rows * d->columns.leftCols(2) * d->columns.leftCols(2).transpose(), rows) < 1e-12);
}

TEST_CASE("fit: directions of rows, few or many, are those of their covariance", "[lowrank][principal]") {
  const bool centred = GENERATE(true, false);
  for (const Eigen::Index rows : {3, 7, 8, 40}) {
    std::srand(5);
    const fit::Matrix x = fit::Matrix::Random(rows, 8) * Eigen::VectorXd::LinSpaced(8, 3.0, 0.1).asDiagonal() + fit::Matrix::Constant(rows, 8, 0.5);
    fit::Moments moments(8);
    moments.add(x);
    const auto want = fit::principal(moments, centred), got = fit::principal_of_rows(x, centred, 100);
    REQUIRE(got);
    const Eigen::Index n = got->energy.size();
    REQUIRE(n == std::min<Eigen::Index>(centred ? rows - 1 : rows, 8));
    REQUIRE(farthest(got->energy, want->energy.head(n).eval()) < 1e-9);
    REQUIRE(farthest(got->columns, want->columns.leftCols(n).eval()) < 1e-6);
    REQUIRE((got->columns.transpose() * got->columns - fit::Matrix::Identity(n, n)).cwiseAbs().maxCoeff() < 1e-6);
    const auto two = fit::principal_of_rows(x, centred, 2);
    REQUIRE(two->columns.cols() == 2);
    REQUIRE(farthest(two->columns, got->columns.leftCols(2).eval()) < 1e-12);
  }
}

TEST_CASE("fit: rows that are alike, none, or no numbers", "[lowrank][principal]") {
  const auto flat = fit::principal_of_rows(fit::Matrix::Constant(4, 6, 2.0), true, 6);
  REQUIRE(flat);
  REQUIRE(flat->columns.cols() == 1);
  REQUIRE(flat->columns.col(0).norm() == 1.0);
  REQUIRE(flat->energy(0) == 0.0);
  REQUIRE(fit::principal_of_rows(fit::Matrix(0, 6), true, 6).status() == Status::missing_input);
  REQUIRE(fit::principal_of_rows(fit::Matrix::Constant(4, 6, 2.0), true, 0).status() == Status::invalid_argument);
  REQUIRE(fit::principal_of_rows(fit::Matrix::Constant(4, 6, std::nan("")), true, 6).status() == Status::invalid_argument);
}
