#pragma once

#include <Eigen/Dense>
#include <complex>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/lowrank/fit/factor.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::lowrank::fit {

/// One shared head for several that commutes with a rotation of positions: a basis [share * dim, dim] of which column d turns as
/// number d of a row does. Two numbers of a row that turn together are one complex number, whose turning is a product; of a pair's
/// numbers of all heads, the best complex direction is taken. What does not turn gets the best real directions.
///
/// products: sum of x^t x over rows of heads side by side, before rotation or behind it. rotary: leading numbers that turn, in pairs.
///
/// Numbers  columns are orthonormal; energies are mean squares if the products are. The share of the head with the largest part of a
///          complex direction is real and positive, so that results may be compared.
/// Errors   missing_input for a matrix of no size, shape_mismatch unless it is [share * dim, share * dim], invalid_argument when a number
///          is none or `rotary` is no even number up to dim.
inline Expected<Directions> paired_head(const Matrix& products, index_t dim, index_t rotary, prim::RopePairing pairing) {
  if (products.size() == 0) return Status::missing_input;
  if (dim < 1 || products.rows() != products.cols() || products.rows() % dim != 0) return Status::shape_mismatch;
  if (rotary < 0 || rotary > dim || rotary % 2 != 0 || !products.allFinite()) return Status::invalid_argument;
  const index_t share = products.rows() / dim, pairs = rotary / 2;
  const bool half = pairing == prim::RopePairing::half_split;
  Directions d{Matrix::Zero(products.rows(), dim), Vector::Zero(dim)};
  using Complex = Eigen::MatrixXcd;
  for (index_t t = 0; t < pairs; ++t) {
    const index_t a = half ? t : 2 * t, b = half ? t + pairs : 2 * t + 1;
    Complex h(share, share);  // mean of conj(z_i) z_j, z = x_a + i x_b
    for (index_t i = 0; i < share; ++i)
      for (index_t j = 0; j < share; ++j) {
        const auto p = [&](index_t x, index_t y) { return products(i * dim + x, j * dim + y); };
        h(i, j) = {p(a, a) + p(b, b), p(a, b) - p(b, a)};
      }
    const Eigen::SelfAdjointEigenSolver<Complex> solver(h);
    if (solver.info() != Eigen::Success) return Status::invalid_argument;
    Eigen::VectorXcd v = solver.eigenvectors().col(share - 1);
    Eigen::Index most = 0;
    v.cwiseAbs().maxCoeff(&most);
    v *= std::conj(v(most)) / std::abs(v(most));
    for (index_t i = 0; i < share; ++i) {  // (x_a + i x_b) (re + i im)
      const double re = v(i).real(), im = v(i).imag();
      d.columns(i * dim + a, a) = re, d.columns(i * dim + b, a) = -im;
      d.columns(i * dim + a, b) = im, d.columns(i * dim + b, b) = re;
    }
    d.energy(a) = d.energy(b) = std::max(solver.eigenvalues()(share - 1), 0.0) / 2.0;
  }
  const index_t rest = dim - rotary;
  if (rest == 0) return d;
  Matrix still(share * rest, share * rest);
  for (index_t i = 0; i < share; ++i)
    for (index_t j = 0; j < share; ++j)
      still.block(i * rest, j * rest, rest, rest) = products.block(i * dim + rotary, j * dim + rotary, rest, rest);
  const auto plain = principal(still);
  if (!plain) return plain.status();
  for (index_t i = 0; i < share; ++i)
    d.columns.block(i * dim + rotary, rotary, rest, rest) = plain->columns.block(i * rest, 0, rest, rest);
  d.energy.tail(rest) = plain->energy.head(rest);
  return d;
}

/// The part of the rows' energy that the columns of an orthonormal basis hold.
inline double held_energy(const Matrix& products, const Matrix& columns) {
  const double all = products.trace();
  return all > 0 ? (columns.transpose() * products * columns).trace() / all : 1.0;
}

// Folding into weights, y = W x. Of keys only where nothing turns them, or the basis commutes with what does.

/// The projection of shared keys or values: of the heads' own, one below another, [share * dim, inputs].
inline Matrix fold_joined(const Matrix& weights, const Matrix& basis) { return basis.transpose() * weights; }
/// A query head's projection [dim, inputs]; `slice`: rows of the basis that belong to its KV head.
inline Matrix fold_query(const Matrix& weights, const Matrix& slice) { return slice.transpose() * weights; }
/// What a query head adds to the output [outputs, dim].
inline Matrix fold_output(const Matrix& weights, const Matrix& slice) { return weights * slice; }

}  // namespace kvcondense::lowrank::fit
