#include <kvcondense/lowrank/fit/shared_heads.hpp>

#include <cmath>
#include <random>

#include <catch2/catch.hpp>
#include <support/eigen_json.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
namespace fit = lowrank::fit;

namespace {

fit::Matrix turn_rows(const fit::Matrix& rows, index_t heads, index_t dim, index_t rotary, prim::RopePairing pairing, index_t first) {
  const auto angles = *prim::rope_angles({.pairing = pairing, .rotary_dim = rotary}, dim);
  fit::Matrix out = rows;
  for (index_t t = 0; t < rows.rows(); ++t)
    for (index_t h = 0; h < heads; ++h)
      for (index_t p = 0; p < angles.pairs; ++p) {
        const bool half = pairing == prim::RopePairing::half_split;
        const index_t a = h * dim + (half ? p : 2 * p), b = h * dim + (half ? p + angles.pairs : 2 * p + 1);
        const double angle = static_cast<double>((first + t) * 7) * static_cast<double>(angles.frequency[p]), c = std::cos(angle), s = std::sin(angle);
        out(t, a) = rows(t, a) * c - rows(t, b) * s;
        out(t, b) = rows(t, b) * c + rows(t, a) * s;
      }
  return out;
}

}  // namespace

TEST_CASE("fit: a paired basis commutes with the rotation and folds into weights", "[lowrank][shared_heads]") {
  std::mt19937 random(6);
  std::normal_distribution<double> normal;
  const auto noise = [&](index_t r, index_t c) { return fit::Matrix(fit::Matrix::NullaryExpr(r, c, [&] { return normal(random); })); };
  for (const auto& [share, dim, rotary, pairing] :
       {std::tuple<index_t, index_t, index_t, prim::RopePairing>{2, 8, 8, prim::RopePairing::half_split}, {3, 6, 4, prim::RopePairing::half_split},
        {4, 8, 8, prim::RopePairing::interleaved}, {2, 10, 6, prim::RopePairing::interleaved}, {1, 4, 4, prim::RopePairing::half_split}}) {
    CAPTURE(share, dim, rotary);
    const index_t hidden = 12;
    const fit::Matrix x = noise(60, hidden), w = noise(share * dim, hidden), wq = noise(dim, hidden), wo = noise(5, dim);
    const fit::Matrix keys = x * w.transpose();
    const auto d = fit::paired_head(keys.transpose() * keys, dim, rotary, pairing);
    REQUIRE(d);
    const fit::Matrix& b = d->columns;
    REQUIRE(farthest(b.transpose() * b, fit::Matrix::Identity(dim, dim)) < 1e-12);
    // Joined and then turned is turned and then joined.
    const fit::Matrix turned = turn_rows(keys, share, dim, rotary, pairing, 3);
    REQUIRE(farthest(turn_rows(keys * b, 1, dim, rotary, pairing, 3), turned * b) < 1e-9);
    // Folded weights give the logits of joined keys and mapped queries, turned as a model would.
    for (index_t i = 0; i < share; ++i) {
      const fit::Matrix slice = b.middleRows(i * dim, dim), q = x * wq.transpose();
      const fit::Matrix folded_q = turn_rows(x * fit::fold_query(wq, slice).transpose(), 1, dim, rotary, pairing, 3);
      const fit::Matrix folded_k = turn_rows(x * fit::fold_joined(w, b).transpose(), 1, dim, rotary, pairing, 3);
      REQUIRE(farthest(folded_q * folded_k.transpose(), (turn_rows(q, 1, dim, rotary, pairing, 3) * slice) * (turned * b).transpose()) < 1e-8);
      REQUIRE(farthest(fit::fold_output(wo, slice) * (keys * b).transpose(), wo * (slice * (keys * b).transpose())) < 1e-9);
    }
    // It cannot hold more than free directions do, and holds all where one head is.
    const auto free = fit::shared_head(keys);
    REQUIRE(free);
    const double held = fit::held_energy(keys.transpose() * keys, b), most = fit::held_energy(keys.transpose() * keys, free->columns.leftCols(dim));
    REQUIRE(held <= most + 1e-12);
    REQUIRE(held == Approx(d->energy.sum() / (keys.transpose() * keys).trace()));
    if (share == 1) REQUIRE(held == Approx(1.0));
    // No other complex direction is better.
    for (int trial = 0; trial < 20; ++trial) {
      const fit::Matrix near = keys + 0.3 * noise(60, share * dim);
      const auto other = fit::paired_head(near.transpose() * near, dim, rotary, pairing);
      REQUIRE(fit::held_energy(keys.transpose() * keys, other->columns) <= held + 1e-12);
    }
  }
  // Heads that are turned copies of one within each pair are one paired head without loss.
  const fit::Matrix one = noise(40, 8);
  fit::Matrix both(40, 16);
  both << one, one;
  for (index_t t = 0; t < 40; ++t)
    for (index_t p = 0; p < 4; ++p) {
      const double c = 0.6, s = 0.8;
      both(t, 8 + p) = 2 * (one(t, p) * c - one(t, p + 4) * s), both(t, 12 + p) = 2 * (one(t, p + 4) * c + one(t, p) * s);
    }
  const auto d = fit::paired_head(both.transpose() * both, 8, 8, prim::RopePairing::half_split);
  REQUIRE(fit::held_energy(both.transpose() * both, d->columns) == Approx(1.0));
}

TEST_CASE("fit: a paired basis of nothing, of another size and of no numbers", "[lowrank][shared_heads]") {
  const fit::Matrix p = fit::Matrix::Identity(4, 4);
  REQUIRE(fit::paired_head({}, 2, 2, prim::RopePairing::half_split).status() == Status::missing_input);
  REQUIRE(fit::paired_head(p, 3, 2, prim::RopePairing::half_split).status() == Status::shape_mismatch);
  REQUIRE(fit::paired_head(p, 2, 1, prim::RopePairing::half_split).status() == Status::invalid_argument);
  fit::Matrix nan = p;
  nan(1, 1) = NAN;
  REQUIRE(fit::paired_head(nan, 2, 2, prim::RopePairing::half_split).status() == Status::invalid_argument);
}
