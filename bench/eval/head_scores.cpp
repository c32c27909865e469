#include <eval/head_scores.hpp>

#include <algorithm>
#include <cmath>

namespace eval {
namespace {

/// Rows of one query head's attention.
class Rows {
 public:
  Rows(const Recording& r, index_t layer, index_t head)
      : layer_(&r.layers[static_cast<std::size_t>(layer)]),
        dim_(r.shape.head_dim),
        q_step_(r.shape.q_heads * dim_),
        k_step_(r.shape.kv_heads * dim_),
        q_at_(head * dim_),
        k_at_(head / r.shape.group() * dim_) {}

  /// exp(logit - largest) of query `t` over tokens 0 ... t.
  const std::vector<double>& weights(index_t t) {
    const float* q = layer_->q.data() + t * q_step_ + q_at_;
    const double scale = 1 / std::sqrt(static_cast<double>(dim_));
    weight_.resize(static_cast<std::size_t>(t + 1));
    const float* k = layer_->k.data() + k_at_;
    for (double& w : weight_) {
      float dot[4] = {};
      index_t d = 0;
      for (; d + 4 <= dim_; d += 4)
        for (index_t i = 0; i < 4; ++i) dot[i] += q[d + i] * k[d + i];
      for (; d < dim_; ++d) dot[0] += q[d] * k[d];
      w = scale * static_cast<double>((dot[0] + dot[1]) + (dot[2] + dot[3]));
      k += k_step_;
    }
    const double top = *std::max_element(weight_.begin(), weight_.end());
    for (double& w : weight_) w = std::exp(w - top);
    return weight_;
  }

  const float* value(index_t t) const { return layer_->v.data() + t * k_step_ + k_at_; }

 private:
  const Recording::Layer* layer_;
  index_t dim_, q_step_, k_step_, q_at_, k_at_;
  std::vector<double> weight_;
};

double sum_of(const std::vector<double>& x) {
  double sum = 0;
  for (const double w : x) sum += w;
  return sum;
}

}  // namespace

ProbeScores probe_scores(const Recording& probe, index_t layer, index_t segment) {
  ProbeScores best;
  best.echo.assign(static_cast<std::size_t>(probe.shape.kv_heads), 0.0);
  best.induction = best.echo;
  for (index_t h = 0; h < probe.shape.q_heads; ++h) {
    Rows rows(probe, layer, h);
    double echo = 0, induction = 0;
    index_t pairs = 0;
    for (index_t t = segment; t < probe.tokens; ++t) {
      const auto& w = rows.weights(t);
      const double sum = sum_of(w);
      for (index_t before = t - segment; before >= 0; before -= segment, ++pairs) {
        echo += w[static_cast<std::size_t>(before)] / sum;
        induction += w[static_cast<std::size_t>(before + 1)] / sum;
      }
    }
    const auto g = static_cast<std::size_t>(h / probe.shape.group());
    const double all = static_cast<double>(std::max<index_t>(1, pairs));
    best.echo[g] = std::max(best.echo[g], echo / all);
    best.induction[g] = std::max(best.induction[g], induction / all);
  }
  return best;
}

std::vector<float> column_sums(const Recording& r, index_t layer) {
  std::vector<float> sums;
  for (index_t h = 0; h < r.shape.q_heads; ++h) {
    Rows rows(r, layer, h);
    std::vector<double> column(static_cast<std::size_t>(r.tokens), 0.0);
    for (index_t t = 0; t < r.tokens; ++t) {
      const auto& w = rows.weights(t);
      const double sum = sum_of(w);
      for (std::size_t j = 0; j < w.size(); ++j) column[j] += w[j] / sum;
    }
    sums.insert(sums.end(), column.begin(), column.end());
  }
  return sums;
}

std::vector<double> gap_products(const Recording& r, index_t layer, const std::vector<index_t>& positions,
                                 index_t sinks, index_t recent, const engine::PackedMatrix& output) {
  const index_t heads = r.shape.kv_heads, dim = r.shape.head_dim, width = r.shape.q_heads * dim;
  const auto count = static_cast<index_t>(positions.size());
  std::vector<std::vector<float>> gap(static_cast<std::size_t>(heads));
  std::vector<double> all(static_cast<std::size_t>(dim)), near(all.size());
  for (index_t g = 0; g < heads; ++g) {
    std::vector<float> change(static_cast<std::size_t>(count * width), 0.0f);
    for (index_t h = g * r.shape.group(); h < (g + 1) * r.shape.group(); ++h) {
      Rows rows(r, layer, h);
      for (index_t i = 0; i < count; ++i) {
        const index_t t = positions[static_cast<std::size_t>(i)];
        const auto& w = rows.weights(t);
        std::fill(all.begin(), all.end(), 0.0);
        near = all;
        double sum = 0, near_sum = 0;
        for (index_t j = 0; j <= t; ++j) {
          const double weight = w[static_cast<std::size_t>(j)];
          const bool seen = j < sinks || j >= t - recent;
          sum += weight;
          if (seen) near_sum += weight;
          const float* v = rows.value(j);
          for (std::size_t d = 0; d < all.size(); ++d) {
            const double x = weight * static_cast<double>(v[d]);
            all[d] += x;
            if (seen) near[d] += x;
          }
        }
        float* to = change.data() + i * width + h * dim;
        for (std::size_t d = 0; d < all.size(); ++d) to[d] = static_cast<float>(
              (near_sum > 0 ? near[d] / near_sum : static_cast<double>(rows.value(t)[d])) - all[d] / sum);
      }
    }
    auto& mine = gap[static_cast<std::size_t>(g)];
    mine.resize(static_cast<std::size_t>(count * output.out()));
    output.multiply(change.data(), count, mine.data());
  }
  std::vector<double> products;
  for (const auto& a : gap)
    for (const auto& b : gap) {
      double sum = 0;
      for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
      products.push_back(sum);
    }
  return products;
}

}  // namespace eval
