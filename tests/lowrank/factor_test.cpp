#include <random>

#include <catch2/catch.hpp>

#include <kvcondense/lowrank/fit/factor.hpp>
#include <support/eigen_json.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::lowrank;
using test::farthest;
using test::matrix;

TEST_CASE("fit: weights factored plainly, scaled and whitened", "[lowrank][factor]") {
  const auto oracle = test::load_oracle("lowrank.json", "weight_factorisation");
  const auto& want = oracle["expected"];
  const fit::Matrix w = matrix(oracle["inputs"]["W"]), x = matrix(oracle["inputs"]["X"]);
  REQUIRE(farthest(x.transpose() * x, matrix(want["gram"])) < 1e-9);
  REQUIRE(farthest(fit::whitening_root(x.transpose() * x), matrix(want["cholesky_lower"])) < 1e-9);
  REQUIRE(farthest(fit::input_scale(x, 0.5), test::vector(want["asvd_scale"])) < 1e-9);
  const struct {
    fit::Weighing how;
    const char* error;
    const char* weights;
  } cases[] = {{fit::Weighing::plain, "err_plain", "W_hat_plain"},
               {fit::Weighing::asvd, "err_asvd", "W_hat_asvd"},
               {fit::Weighing::whitening, "err_whitened", "W_hat_whitened"}};
  for (const auto& c : cases) {
    const fit::Matrix root = fit::weighing_root(c.how, x);
    const auto f = fit::factorize(w, root, 1);
    REQUIRE(f);
    const fit::Matrix back = f->left * f->right.transpose();
    REQUIRE(farthest(back, matrix(want[c.weights])) < 1e-8);
    REQUIRE((x * (w - back).transpose()).norm() == Approx(want[c.error].get<double>()).margin(1e-8));
    // What a cache does with outputs alone is the same.
    const auto d = fit::output_directions(w, root);
    REQUIRE(d);
    const fit::Matrix p = d->columns.leftCols(1) * d->columns.leftCols(1).transpose();
    REQUIRE(farthest(p * w, back) < 1e-8);
    REQUIRE(std::sqrt(d->energy(0)) == Approx(f->singular(0)).epsilon(1e-9));
    if (c.how == fit::Weighing::whitening) {
      REQUIRE(farthest(f->singular, test::vector(want["whitened_singular_values"])) < 1e-8);
      REQUIRE(f->singular.tail(2).norm() == Approx(want["predicted_whitened_error"].get<double>()).margin(1e-8));
    }
  }
}

TEST_CASE("fit: a fused output projection does what reconstructing first does", "[lowrank][factor]") {
  const auto oracle = test::load_oracle("lowrank.json", "palu_fused_output");
  const auto& want = oracle["expected"];
  const fit::Matrix wv = matrix(oracle["inputs"]["W_v"]), wo = matrix(oracle["inputs"]["W_o"]), x = matrix(oracle["inputs"]["X"]),
                    probs = matrix(oracle["inputs"]["probs"]);
  const auto d = fit::output_directions(wv, fit::Matrix::Identity(3, 3));
  REQUIRE(d);
  const fit::Matrix b = d->columns.leftCols(2), z = x * wv.transpose() * b;
  fit::Vector reconstruct = fit::Vector::Zero(3), fused = fit::Vector::Zero(3);
  for (index_t h = 0; h < 2; ++h) {
    const fit::Matrix slice = b.middleRows(2 * h, 2), out = wo.middleCols(2 * h, 2);
    const fit::Vector sum = z.transpose() * probs.row(h).transpose();  // in coordinates
    reconstruct += out * (slice * sum);
    fused += (out * slice) * sum;
  }
  REQUIRE(farthest(reconstruct, test::vector(want["y_reconstruct"])) < 1e-8);
  REQUIRE(farthest(fused, test::vector(want["y_fused"])) < 1e-8);
}

TEST_CASE("fit: two heads in one give the logits of absorbed weights", "[lowrank][factor]") {
  const auto oracle = test::load_oracle("lowrank.json", "kv_heads_svd");
  const auto& want = oracle["expected"];
  const fit::Matrix rows = matrix(oracle["inputs"]["X"]);
  fit::Matrix keys(rows.rows(), 4);
  for (index_t h = 0; h < 2; ++h)
    keys.middleCols(2 * h, 2) = rows * matrix(oracle["inputs"]["W_k"][static_cast<std::size_t>(h)]).transpose();
  const auto d = fit::shared_head(keys);
  REQUIRE(d);
  REQUIRE(farthest(d->energy.cwiseSqrt(), test::vector(want["singular_values"])) < 1e-7);
  REQUIRE(farthest(d->columns.leftCols(2), matrix(want["B"])) < 1e-8);
  const fit::Matrix shared = keys * d->columns.leftCols(2);
  REQUIRE(farthest(shared, matrix(want["shared_K"])) < 1e-8);
  const fit::Vector x = test::vector(oracle["inputs"]["x_query"]);
  for (index_t h = 0; h < 2; ++h) {
    const fit::Vector q = matrix(oracle["inputs"]["W_q"][static_cast<std::size_t>(h)]) * x;
    const fit::Vector logits = shared * (d->columns.middleRows(2 * h, 2).leftCols(2).transpose() * q) / std::sqrt(2.0);
    REQUIRE(farthest(logits, test::vector(want["logits_shared"][static_cast<std::size_t>(h)])) < 1e-8);
  }
}

TEST_CASE("fit: whitening loses least, plain factors most, when inputs are uneven", "[lowrank][factor]") {
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  const fit::Matrix w = fit::Matrix::NullaryExpr(8, 12, [&] { return normal(random); });
  fit::Matrix x = fit::Matrix::NullaryExpr(200, 12, [&] { return normal(random); });
  for (index_t i = 0; i < 12; ++i) x.col(i) *= std::pow(0.6, static_cast<double>(i)) * 10;
  double last = 0;
  for (const fit::Weighing how : {fit::Weighing::whitening, fit::Weighing::asvd, fit::Weighing::plain}) {
    const auto f = fit::factorize(w, fit::weighing_root(how, x), 3);
    REQUIRE(f);
    const double error = (x * (w - f->left * f->right.transpose()).transpose()).norm();
    REQUIRE(error > last * 1.01);
    last = error;
    // What whitening loses is known beforehand: the singular values that it leaves out, nothing else is less.
    if (how == fit::Weighing::whitening) REQUIRE(error == Approx(f->singular.tail(f->singular.size() - 3).norm()).epsilon(1e-9));
  }
}

TEST_CASE("fit: factors of inputs that span little, and refusals", "[lowrank][factor]") {
  const fit::Matrix gram = fit::Vector::Ones(3) * fit::Vector::Ones(3).transpose();
  const fit::Matrix root = fit::whitening_root(gram);
  REQUIRE(root.allFinite());
  REQUIRE(farthest(root * root.transpose(), gram) < 2e-3);
  REQUIRE(fit::factorize(fit::Matrix::Ones(2, 3), fit::Matrix::Identity(3, 3), 0).status() == Status::invalid_argument);
  REQUIRE(fit::factorize(fit::Matrix::Ones(2, 3), fit::Matrix::Identity(3, 3), 3).status() == Status::invalid_argument);
  REQUIRE(fit::output_directions(fit::Matrix(), fit::Matrix()).status() == Status::missing_input);
  REQUIRE(fit::output_directions(fit::Matrix::Ones(2, 3), fit::Matrix::Identity(2, 2)).status() == Status::shape_mismatch);
  REQUIRE(fit::shared_head(fit::Matrix(0, 4)).status() == Status::missing_input);
}

TEST_CASE("fit: keys of a few directions, as shadowkv keeps them", "[lowrank][factor][shadowkv]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "shadowkv")["lowrank"];
  const fit::Matrix k = matrix(oracle["K_pre"]);
  const auto f = fit::factorize(k, fit::Matrix::Identity(4, 4), oracle["rank"].get<index_t>());
  REQUIRE(f);
  const fit::Matrix back = f->left * f->right.transpose();
  REQUIRE(farthest(back, matrix(oracle["K_rank2"])) < 1e-9);
  REQUIRE(farthest(f->singular, test::vector(oracle["singular_values"])) < 1e-9);
  REQUIRE((k - back).norm() / k.norm() == Approx(oracle["rel_fro_err"].get<double>()).epsilon(1e-9));
}
