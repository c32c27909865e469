#pragma once

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/lowrank/fit/orthogonal.hpp>
#include <kvcondense/lowrank/fit/principal.hpp>

namespace kvcondense::lowrank::fit {

/// A basis that is trained: orthonormal columns, the best first, and what is taken off rows before.
struct CentredBasis {
  Matrix columns;
  Vector mean;
};

/// One recorded text of one row of keys and values: queries of each head that reads it [tokens, dim], keys [tokens, dim],
/// values [tokens, value_dim]. Queries of a head that reads only part of the row have zeros elsewhere.
struct HeadText {
  std::vector<Eigen::MatrixXf> queries;
  Eigen::MatrixXf keys, values;
};

/// How `Distiller` trains.
struct Training {
  index_t steps = 400;
  double rate = 0.005;     ///< of a turn, falling to a tenth
  index_t tile = 8;        ///< ranks are drawn from its multiples
  std::uint64_t seed = 1;
};

/// Trains the bases of keys and values of one row of a cache together, so that attention over their first columns gives the
/// outputs that attention gives over all of them, whatever the rank: every step draws both ranks anew, and queries.
///
/// Source   MatryoshkaKV, arXiv:2410.14731; orthogonal matrices turn by Cayley's map of a skew gradient.
/// Numbers  float32 for attention, float64 for bases. The loss is |W_o (o' - o)|^2 over |W_o o|^2, of sampled queries whose
///          causal attention sees coded slots only.
class Distiller {
 public:
  /// metric: per query head W_o^t W_o [value_dim, value_dim], how much the model makes of each direction of an output.
  Distiller(std::vector<HeadText> texts, std::vector<Matrix> metric, double scale, std::uint64_t seed)
      : texts_(std::move(texts)), scale_(static_cast<float>(scale)) {
    for (const Matrix& m : metric) metric_.push_back(m.cast<float>());
    for (std::size_t b = 0; b < std::max(batches, texts_.size()); ++b) measured_.push_back(draw(b, seed));
  }

  /// The mean loss over queries drawn apart from those of steps.
  double loss(const CentredBasis& keys, index_t key_rank, const CentredBasis& values, index_t value_rank) const {
    double sum = 0;
    for (const Batch& b : measured_) sum += run(b, keys, key_rank, values, value_rank, nullptr);
    return sum / static_cast<double>(measured_.size());
  }

  void train(CentredBasis& keys, CentredBasis& values, const Training& how) const {
    const index_t dim = keys.columns.rows(), value_dim = values.columns.rows();
    RotationSteps turn_keys(dim), turn_values(value_dim);
    Vector mean_step = Vector::Zero(value_dim);
    for (index_t s = 0; s < how.steps; ++s) {
      const auto one_of = [&](std::uint64_t what, index_t below) {
        return static_cast<index_t>(random_bits(how.seed, static_cast<std::uint64_t>(s) * 4 + what) % static_cast<std::uint64_t>(below));
      };
      const Batch batch = draw(measured_.size() + static_cast<std::size_t>(s), how.seed + 1);
      const index_t kr = std::min(dim, how.tile * (1 + one_of(1, std::max<index_t>(1, dim / how.tile))));
      const index_t vr = std::min(value_dim, how.tile * (1 + one_of(2, std::max<index_t>(1, value_dim / how.tile))));
      Gradient g;
      const double now = run(batch, keys, kr, values, vr, &g);
      if (!(now > 1e-9)) continue;  // all directions of both: what is left is rounding
      // Of the logarithm: else low ranks, whose losses are large, would decide every turn.
      g.keys /= now, g.values /= now, g.value_mean /= now;
      const double rate = how.rate * (1.0 - 0.9 * static_cast<double>(s) / static_cast<double>(how.steps));
      turn_keys.step(keys.columns, padded(g.keys, keys.columns, kr), rate);
      turn_values.step(values.columns, padded(g.values, values.columns, vr), rate);
      mean_step = 0.9 * mean_step + 0.1 * g.value_mean;
      const double size = mean_step.norm();
      if (size > 0) values.mean -= 0.05 * rate * values.mean.norm() / size * mean_step;
    }
  }

 private:
  static constexpr std::size_t batches = 24;  ///< at least, that losses are measured over: each text has one
  static constexpr index_t rows = 24;  ///< query positions of a batch

  struct Batch {
    std::size_t text = 0;
    Eigen::MatrixXf queries, exact;
    std::vector<index_t> seen;  ///< tokens that each position sees
    double energy = 0;
  };
  struct Gradient {
    Matrix keys, values;  ///< in the projectors
    Vector value_mean;
  };

  /// Some positions of a text and what attention gives there.
  Batch draw(std::size_t number, std::uint64_t seed) const {
    Batch batch;
    batch.text = number % texts_.size();
    const HeadText& t = texts_[batch.text];
    const auto tokens = static_cast<std::uint64_t>(t.keys.rows()), first = static_cast<std::uint64_t>(number) * static_cast<std::uint64_t>(rows);
    const auto heads = static_cast<index_t>(t.queries.size());
    batch.queries.resize(heads * rows, t.keys.cols());
    for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(rows); ++i)
      batch.seen.push_back(static_cast<index_t>(tokens / 8 + random_bits(seed, first + i) % (tokens - tokens / 8)) + 1);
    for (index_t h = 0; h < heads; ++h)
      for (index_t i = 0; i < rows; ++i)
        batch.queries.row(h * rows + i) = t.queries[static_cast<std::size_t>(h)].row(batch.seen[static_cast<std::size_t>(i)] - 1) * scale_;
    Eigen::MatrixXf weights = batch.queries * t.keys.transpose();
    softmax(weights, batch.seen);
    batch.exact = weights * t.values;
    batch.energy = weighed(batch.exact).cwiseProduct(batch.exact).sum();
    return batch;
  }

  static void softmax(Eigen::MatrixXf& logits, const std::vector<index_t>& seen) {
    const auto n = static_cast<index_t>(seen.size());
    for (Eigen::Index r = 0; r < logits.rows(); ++r) {
      const index_t last = seen[static_cast<std::size_t>(r % n)];
      auto row = logits.row(r).head(last);
      row = (row.array() - row.maxCoeff()).exp();
      row /= row.sum();
      logits.row(r).tail(logits.cols() - last).setZero();
    }
  }
  /// Rows by their head's metric.
  Eigen::MatrixXf weighed(const Eigen::MatrixXf& x) const {
    Eigen::MatrixXf y(x.rows(), x.cols());
    for (std::size_t h = 0; h < metric_.size(); ++h) {
      const auto at = static_cast<Eigen::Index>(h) * rows;
      y.middleRows(at, rows).noalias() = x.middleRows(at, rows) * metric_[h];
    }
    return y;
  }
  /// The gradient in the columns from that in P P^t; columns beyond the rank have none.
  static Matrix padded(const Matrix& projector, const Matrix& columns, index_t rank) {
    Matrix g = Matrix::Zero(columns.rows(), columns.cols());
    g.leftCols(rank) = (projector + projector.transpose()) * columns.leftCols(rank);
    return g;
  }

  double run(const Batch& b, const CentredBasis& keys, index_t key_rank, const CentredBasis& values, index_t value_rank,
             Gradient* gradient) const {
    const HeadText& t = texts_[b.text];
    const Eigen::MatrixXf pk = keys.columns.leftCols(key_rank).cast<float>(), pv = values.columns.leftCols(value_rank).cast<float>();
    const Eigen::RowVectorXf mk = keys.mean.cast<float>().transpose(), mv = values.mean.cast<float>().transpose();
    const Eigen::MatrixXf kc = t.keys.rowwise() - mk, vc = t.values.rowwise() - mv;
    // What q . mean adds is the same for every slot.
    Eigen::MatrixXf weights = (b.queries * pk) * (kc * pk).transpose();
    softmax(weights, b.seen);
    const Eigen::MatrixXf sums = weights * vc;
    const Eigen::MatrixXf error = ((sums * pv) * pv.transpose()).rowwise() + mv - b.exact;
    const Eigen::MatrixXf pull = weighed(error);
    const double loss = static_cast<double>(pull.cwiseProduct(error).sum()) / b.energy;
    if (gradient == nullptr) return loss;
    const Eigen::MatrixXf g = pull * static_cast<float>(2.0 / b.energy);
    gradient->values = (sums.transpose() * g).cast<double>();
    const Vector all = g.colwise().sum().transpose().cast<double>();
    const Matrix p = values.columns.leftCols(value_rank);
    gradient->value_mean = all - p * (p.transpose() * all);
    Eigen::MatrixXf slope = (g * pv) * (vc * pv).transpose();
    const Eigen::VectorXf along = slope.cwiseProduct(weights).rowwise().sum();
    slope = weights.cwiseProduct(slope.colwise() - along);
    gradient->keys = ((slope * kc).transpose() * b.queries).cast<double>();
    return loss;
  }

  std::vector<HeadText> texts_;
  std::vector<Eigen::MatrixXf> metric_;
  std::vector<Batch> measured_;
  float scale_;
};

/// Fits factors so that x E D^t is close to x over rows of this mean product, from where they are: CSKV's layer-wise
/// reconstruction, arXiv:2409.10593. Returns the part of the energy that is lost at the end.
///
/// Numbers  Adam on both factors, float64; the best factors seen are kept, so the loss never grows.
inline double fit_reconstruction(const Matrix& covariance, Factors& factors, index_t steps, double rate) {
  const double all = covariance.trace();
  if (!(all > 0)) return 0.0;
  const Matrix one = Matrix::Identity(covariance.rows(), covariance.cols());
  struct Adam {
    Matrix mean, square;
    void step(Matrix& x, const Matrix& g, double step_rate, index_t n) {
      if (mean.size() == 0) mean = square = Matrix::Zero(x.rows(), x.cols());
      mean = 0.9 * mean + 0.1 * g, square = 0.999 * square + 0.001 * g.cwiseProduct(g);
      const double up = 1 / (1 - std::pow(0.9, static_cast<double>(n))), wide = 1 / (1 - std::pow(0.999, static_cast<double>(n)));
      x -= step_rate * (mean.array() * up / ((square.array() * wide).sqrt() + 1e-12)).matrix();
    }
  } encode, decode;
  Factors best = factors;
  double least = -1;
  for (index_t s = 0; s <= steps; ++s) {
    const Matrix left = one - factors.encode * factors.decode.transpose(), lost = covariance * left;
    const double loss = left.cwiseProduct(lost).sum() / all;
    if (least < 0 || loss < least) least = loss, best = factors;
    if (s == steps) break;
    const double now = rate * (1.0 - static_cast<double>(s) / static_cast<double>(steps));
    const Matrix ge = lost * factors.decode * (-2.0 / all), gd = lost.transpose() * factors.encode * (-2.0 / all);
    encode.step(factors.encode, ge, now, s + 1);
    decode.step(factors.decode, gd, now, s + 1);
  }
  factors = best;
  return least;
}

/// Least squares by turns: decoders for the coordinates that encoders give, encoders for the decoders; ReCalKV's
/// calibration of values, arXiv:2505.24357. The loss never grows.
inline void alternate(const Matrix& covariance, Factors& factors, index_t rounds) {
  for (index_t i = 0; i < rounds; ++i) {
    const Matrix z = factors.encode.transpose() * covariance * factors.encode;
    factors.decode = z.completeOrthogonalDecomposition().solve(Matrix(factors.encode.transpose() * covariance)).transpose();
    const Matrix d = factors.decode.transpose() * factors.decode;
    factors.encode = d.completeOrthogonalDecomposition().solve(Matrix(factors.decode.transpose())).transpose();
  }
}

}  // namespace kvcondense::lowrank::fit
