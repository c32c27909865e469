#pragma once

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/status.hpp>

// Bases from calibration. These headers need Eigen 3.4; what runs in a cache does not.

namespace kvcondense::lowrank::fit {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;

/// Sums over calibration rows: all that principal directions need of them.
struct Moments {
  Matrix products;  ///< sum of x^t x
  Vector sum;
  double count = 0;

  explicit Moments(index_t dim = 0) : products(Matrix::Zero(dim, dim)), sum(Vector::Zero(dim)) {}

  void add(const Matrix& rows) {
    products.noalias() += rows.transpose() * rows;
    sum += rows.colwise().sum().transpose();
    count += static_cast<double>(rows.rows());
  }
  void add(const Moments& other) { products += other.products, sum += other.sum, count += other.count; }

  Vector mean() const { return count > 0 ? Vector(sum / count) : Vector(sum); }
  /// Mean of x^t x, of rows without their mean when `centred`.
  Matrix covariance(bool centred) const {
    Matrix c = count > 0 ? Matrix(products / count) : products;
    if (centred) c -= mean() * mean().transpose();
    return c;
  }
};

/// Orthonormal columns, the best first; `energy` is the mean square along each.
struct Directions {
  Matrix columns;
  Vector energy;
};

/// Makes the entry of largest size in each column positive, so that results may be compared.
inline void fix_signs(Matrix& columns) {
  for (Eigen::Index j = 0; j < columns.cols(); ++j) {
    Eigen::Index most = 0;
    columns.col(j).cwiseAbs().maxCoeff(&most);
    if (columns(most, j) < 0) columns.col(j) *= -1.0;
  }
}

/// Eigenvectors of a covariance, largest value first. Values below rounding count as zero.
///
/// Errors   missing_input for a matrix of no size; invalid_argument when a number is none.
inline Expected<Directions> principal(const Matrix& covariance) {
  if (covariance.size() == 0) return Status::missing_input;
  if (!covariance.allFinite()) return Status::invalid_argument;
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(covariance);
  if (solver.info() != Eigen::Success) return Status::invalid_argument;
  Directions d{solver.eigenvectors().rowwise().reverse(), solver.eigenvalues().reverse()};
  const double noise = 1e-14 * std::max(d.energy(0), 0.0);
  for (Eigen::Index i = 0; i < d.energy.size(); ++i)
    if (!(d.energy(i) > noise)) d.energy(i) = 0.0;
  fix_signs(d.columns);
  return d;
}
/// The same of calibration rows. missing_input: there are none.
inline Expected<Directions> principal(const Moments& moments, bool centred) {
  if (!(moments.count > 0)) return Status::missing_input;
  return principal(moments.covariance(centred));
}

/// The same of rows that are all there, at most `most` directions, and no more than they show: where rows are fewer than their
/// numbers from products of rows with rows, so that a wide matrix of numbers with numbers never arises.
///
/// Numbers  directions with 1e-10 of the largest energy or less are left out; rows that are all alike give one, of energy 0.
/// Cost     the cube of the smaller of rows and numbers.
/// Errors   missing_input without rows, invalid_argument when a number is none or `most` is below 1.
inline Expected<Directions> principal_of_rows(Matrix rows, bool centred, index_t most) {
  if (rows.size() == 0) return Status::missing_input;
  if (most < 1 || !rows.allFinite()) return Status::invalid_argument;
  if (centred) rows.rowwise() -= rows.colwise().mean().eval();
  const bool few = rows.rows() < rows.cols();
  const auto count = static_cast<double>(rows.rows());
  const auto d = few ? principal(rows * rows.transpose() / count) : principal(rows.transpose() * rows / count);
  if (!d) return d.status();
  index_t n = 0;
  while (n < std::min<index_t>(most, d->energy.size()) && d->energy(n) > 1e-10 * d->energy(0)) ++n;
  if (n == 0) return Directions{Matrix::Identity(rows.cols(), 1), Vector::Zero(1)};
  Directions kept{d->columns.leftCols(n), d->energy.head(n)};
  if (few) {
    kept.columns = rows.transpose() * kept.columns;
    kept.columns.colwise().normalize();
    fix_signs(kept.columns);
  }
  return kept;
}

/// How many directions the data really has.
inline index_t numeric_rank(const Vector& energy) {
  index_t r = 0;
  while (r < energy.size() && energy(r) > 1e-12 * energy(0)) ++r;
  return r;
}

/// Columns that rows are encoded by and others that queries are mapped by.
struct Factors {
  Matrix encode;
  Matrix decode;
  Vector energy;
};

/// The best basis for products: minimises the mean of (q . k - q . k')^2 over independent keys and queries, whose mean
/// products are C_k and C_q: with U the eigenvectors of C_q^(1/2) C_k C_q^(1/2) rows are encoded by C_q^(1/2) U and
/// queries mapped by C_q^(-1/2) U. The error is the sum of the discarded energies.
///
/// Numbers  `regular` times the mean diagonal is added to C_q, so that directions without queries stay invertible.
inline Expected<Factors> query_aware(const Matrix& keys, const Matrix& queries, double regular = 0.0) {
  if (keys.size() == 0 || queries.rows() != keys.rows()) return Status::shape_mismatch;
  if (!keys.allFinite() || !queries.allFinite()) return Status::invalid_argument;
  const double trace = queries.trace() / static_cast<double>(queries.rows());
  const Matrix c = queries + regular * trace * Matrix::Identity(queries.rows(), queries.cols());
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(c);
  if (solver.info() != Eigen::Success || !(solver.eigenvalues()(0) > 0)) return Status::invalid_argument;
  const Vector root = solver.eigenvalues().cwiseSqrt();
  const Matrix half = solver.eigenvectors() * root.asDiagonal() * solver.eigenvectors().transpose();
  const Matrix back = solver.eigenvectors() * root.cwiseInverse().asDiagonal() * solver.eigenvectors().transpose();
  const auto d = principal(half * keys * half);
  if (!d) return d.status();
  return Factors{half * d->columns, back * d->columns, d->energy};
}

}  // namespace kvcondense::lowrank::fit
