#pragma once

#include <Eigen/Dense>
#include <nlohmann/json.hpp>

namespace kvcondense::test {

/// A list of rows as a matrix.
inline Eigen::MatrixXd matrix(const nlohmann::json& rows) {
  Eigen::MatrixXd m(static_cast<Eigen::Index>(rows.size()), static_cast<Eigen::Index>(rows.at(0).size()));
  for (Eigen::Index i = 0; i < m.rows(); ++i)
    for (Eigen::Index j = 0; j < m.cols(); ++j) m(i, j) = rows[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)].get<double>();
  return m;
}
inline Eigen::VectorXd vector(const nlohmann::json& numbers) {
  Eigen::VectorXd v(static_cast<Eigen::Index>(numbers.size()));
  for (Eigen::Index i = 0; i < v.size(); ++i) v(i) = numbers[static_cast<std::size_t>(i)].get<double>();
  return v;
}
inline double farthest(const Eigen::MatrixXd& a, const Eigen::MatrixXd& b) { return (a - b).cwiseAbs().maxCoeff(); }

}  // namespace kvcondense::test
