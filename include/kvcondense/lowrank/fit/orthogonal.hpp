#pragma once

#include <Eigen/Dense>

#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/lowrank/fit/principal.hpp>

namespace kvcondense::lowrank::fit {

/// The rotation (I - A / 2)^-1 (I + A / 2) of a skew matrix A = X - X^t: orthogonal for any X.
inline Matrix cayley(const Matrix& x) {
  const Matrix one = Matrix::Identity(x.rows(), x.cols()), half = 0.5 * (x - x.transpose());
  return (one - half).partialPivLu().solve(one + half);
}

/// The skew matrix of a rotation: 2 (Q - I) (Q + I)^-1. not_supported when Q turns some direction round (eigenvalue -1).
inline Expected<Matrix> inverse_cayley(const Matrix& q) {
  const Matrix one = Matrix::Identity(q.rows(), q.cols());
  const Eigen::FullPivLU<Matrix> plus((q + one).transpose());
  if (!plus.isInvertible()) return Status::not_supported;
  return Matrix(2.0 * plus.solve((q - one).transpose()).transpose());
}

/// Adam on the rotations: a gradient of a loss in an orthogonal matrix becomes a small turn of its columns, so that the
/// matrix stays orthogonal without constraints.
class RotationSteps {
 public:
  explicit RotationSteps(index_t dim) : mean_(Matrix::Zero(dim, dim)), square_(Matrix::Zero(dim, dim)) {}

  /// Turns `q` against the gradient dL/dq by about `rate` per entry.
  void step(Matrix& q, const Matrix& gradient, double rate) {
    const Matrix skew = q.transpose() * gradient - gradient.transpose() * q;
    ++count_;
    mean_ = decay * mean_ + (1 - decay) * skew;
    square_ = slow * square_ + (1 - slow) * skew.cwiseProduct(skew);
    const double up = 1 / (1 - std::pow(decay, count_)), wide = 1 / (1 - std::pow(slow, count_));
    const Matrix turn = (mean_.array() * up / ((square_.array() * wide).sqrt() + 1e-12)).matrix();
    q = q * cayley(-0.5 * rate * turn);
    if (count_ % 64 == 0) q = Eigen::HouseholderQR<Matrix>(q).householderQ() * signs(q);
  }

 private:
  static constexpr double decay = 0.9, slow = 0.99;
  /// What the triangular factor of a nearly orthogonal matrix says about the signs of its columns.
  static Matrix signs(const Matrix& q) {
    const Matrix r = Eigen::HouseholderQR<Matrix>(q).matrixQR().triangularView<Eigen::Upper>();
    return r.diagonal().cwiseSign().asDiagonal();
  }

  Matrix mean_, square_;
  int count_ = 0;
};

}  // namespace kvcondense::lowrank::fit
