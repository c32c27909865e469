#pragma once

#include <Eigen/Dense>
#include <cmath>
#include <cstdint>

#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/lowrank/fit/principal.hpp>

namespace kvcondense::lowrank::fit {

/// What a weight factorisation minimises: the weights' own error, the same with inputs scaled by their size, or the error
/// of the outputs on calibration inputs.
enum class Weighing : std::uint8_t { plain, asvd, whitening };

/// L R^t close to W: y = W x ~ L (R^t x). left [outputs, rank], right [inputs, rank].
struct WeightFactors {
  Matrix left;
  Matrix right;
  Vector singular;  ///< of W S, all of them
};

/// (mean |x_i| + 1e-6)^alpha, never zero; inputs [rows, inputs].
inline Vector input_scale(const Matrix& inputs, double alpha) {
  return (inputs.cwiseAbs().colwise().mean().transpose().array() + 1e-6).pow(alpha);
}

/// Lower S with S S^t = gram; (1e-3 - smallest eigenvalue) is added to the diagonal where gram has no such S.
inline Matrix whitening_root(const Matrix& gram) {
  const Eigen::LLT<Matrix> first(gram);
  if (first.info() == Eigen::Success && first.matrixL().toDenseMatrix().diagonal().minCoeff() > 0) return first.matrixL();
  const double least = Eigen::SelfAdjointEigenSolver<Matrix>(gram, Eigen::EigenvaluesOnly).eigenvalues()(0);
  return Eigen::LLT<Matrix>(gram + (1e-3 - least) * Matrix::Identity(gram.rows(), gram.cols())).matrixL();
}

/// W S = U Sigma V^t, S as `root` says (lower triangular or diagonal, invertible): left = U Sigma^(1/2), right = S^(-t) V
/// Sigma^(1/2), the first `rank` columns. The triangular system is solved, nothing is inverted.
///
/// Errors   invalid_argument when a number is none or rank is out of range.
inline Expected<WeightFactors> factorize(const Matrix& weights, const Matrix& root, index_t rank) {
  if (!weights.allFinite() || !root.allFinite() || rank < 1 || rank > std::min(weights.rows(), weights.cols()))
    return Status::invalid_argument;
  const Eigen::JacobiSVD<Matrix> svd(weights * root, Eigen::ComputeThinU | Eigen::ComputeThinV);
  const Vector half = svd.singularValues().head(rank).cwiseSqrt();
  WeightFactors f;
  f.singular = svd.singularValues();
  f.left = svd.matrixU().leftCols(rank) * half.asDiagonal();
  f.right = root.transpose().triangularView<Eigen::Upper>().solve(Matrix(svd.matrixV().leftCols(rank) * half.asDiagonal()));
  return f;
}

/// The root S of a weighing for calibration inputs [rows, inputs].
inline Matrix weighing_root(Weighing how, const Matrix& inputs, double alpha = 0.5) {
  switch (how) {
    case Weighing::asvd: return input_scale(inputs, alpha).asDiagonal().toDenseMatrix();
    case Weighing::whitening: return whitening_root(inputs.transpose() * inputs);
    case Weighing::plain: break;
  }
  return Matrix::Identity(inputs.cols(), inputs.cols());
}

/// What a cache needs of a factorisation of y = W x: y itself is what it sees, and U^t W = Sigma V^t S^(-1), so y U gives
/// the same coordinates as x: orthonormal directions U of outputs, the energies those of W S.
inline Expected<Directions> output_directions(const Matrix& weights, const Matrix& root) {
  if (weights.size() == 0) return Status::missing_input;
  if (root.rows() != weights.cols()) return Status::shape_mismatch;
  const Matrix scaled = weights * root;
  return principal(scaled * scaled.transpose());
}

/// One shared head for several: the best `columns` directions of rows that stand side by side, [rows, heads * dim].
/// Keys of head i enter it through rows [i dim, (i + 1) dim) of the columns, queries of head i too.
inline Expected<Directions> shared_head(const Matrix& rows) {
  if (rows.rows() == 0) return Status::missing_input;
  return principal(rows.transpose() * rows);
}

}  // namespace kvcondense::lowrank::fit
