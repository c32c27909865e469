#pragma once

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/lowrank/fit/principal.hpp>

namespace kvcondense::lowrank::fit {

/// Half to even, as Python rounds.
inline index_t round_half_even(double x) { return static_cast<index_t>(std::nearbyint(x)); }

/// Ranks before and after they are rounded to blocks.
struct SharedRanks {
  std::vector<index_t> whole;
  std::vector<index_t> rounded;
};

/// Shares ratio * width * groups ranks out by Fisher information: floor of each share, at most `width`; what is left goes
/// out one by one, smallest remainder first, past full groups; then to multiples of `block`, at least one.
///
/// Source   Palu, arXiv:2407.21118, as its code does it: where what is left is no whole number it overshoots.
/// Errors   invalid_argument unless all shares are positive, 0 < ratio <= 1 and 1 <= block <= width.
inline Expected<SharedRanks> fisher_ranks(const std::vector<double>& fisher, index_t width, double ratio, index_t block) {
  const double sum = std::accumulate(fisher.begin(), fisher.end(), 0.0);
  bool good = !fisher.empty() && ratio > 0 && ratio <= 1 && block >= 1 && block <= width;
  for (const double f : fisher) good = good && f > 0 && f < 1e300;
  if (!good) return Status::invalid_argument;
  const double target = ratio * static_cast<double>(width) * static_cast<double>(fisher.size());
  SharedRanks r;
  std::vector<double> rest;
  double left = target;
  for (const double f : fisher) {
    const double share = target * f / sum;
    r.whole.push_back(std::min(static_cast<index_t>(share), width));
    rest.push_back(share - std::floor(share));
    left -= static_cast<double>(r.whole.back());
  }
  std::vector<std::size_t> order(fisher.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return rest[a] < rest[b]; });
  for (bool gave = true; left > 0 && gave;) {
    gave = false;
    for (const std::size_t i : order) {
      if (left <= 0) break;
      if (r.whole[i] >= width) continue;
      ++r.whole[i], left -= 1, gave = true;
    }
  }
  for (const index_t w : r.whole) {
    const index_t blocks = std::max<index_t>(1, round_half_even(static_cast<double>(w) / static_cast<double>(block)));
    r.rounded.push_back(std::min(blocks * block, width));
  }
  return r;
}

/// One round of a greedy search: lowers by `interval` the `count` ranks above it whose lowering was measured to cost least,
/// none below `interval`. Ties lower the smaller index. Returns which, cheapest first.
inline std::vector<std::size_t> greedy_step(const std::vector<double>& error, std::vector<index_t>& rank, index_t interval,
                                            index_t count) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < rank.size(); ++i)
    if (rank[i] > interval) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return error[a] < error[b]; });
  order.resize(std::min(order.size(), static_cast<std::size_t>(std::max<index_t>(count, 0))));
  for (const std::size_t i : order) rank[i] = std::max(rank[i] - interval, interval);
  return order;
}

/// Products of the condition numbers from each layer to the last.
inline std::vector<double> condition_products(const std::vector<double>& per_layer) {
  std::vector<double> product(per_layer);
  for (std::size_t l = product.size(); l-- > 1;) product[l - 1] *= product[l];
  return product;
}

/// Ranks between `least` and `most`, linear in the logarithm of what the layers' products are: early layers, whose error all
/// later ones amplify, keep more. Equal products keep `most`.
inline std::vector<index_t> condition_ranks(const std::vector<double>& products, index_t least, index_t most) {
  std::vector<index_t> ranks;
  if (products.empty()) return ranks;
  const auto [low, high] = std::minmax_element(products.begin(), products.end());
  const double range = std::log(*high / *low);
  for (const double p : products) {
    const double part = range > 0 ? std::log(p / *low) / range : 1.0;
    ranks.push_back(least + round_half_even(static_cast<double>(most - least) * part));
  }
  return ranks;
}

/// How alike two sets of features over the same samples are, 0 to 1: linear centred kernel alignment. Rows are samples.
inline double alignment(const Matrix& a, const Matrix& b) {
  const Matrix x = a.rowwise() - a.colwise().mean(), y = b.rowwise() - b.colwise().mean();
  const double xx = (x.transpose() * x).norm(), yy = (y.transpose() * y).norm();
  return xx > 0 && yy > 0 ? (x.transpose() * y).squaredNorm() / (xx * yy) : 0.0;
}

/// Groups of `size` heads that are alike: pairs by descending similarity; a pair opens a group or joins the one group
/// that one of the two is in, while it has room. Heads that are left fill groups in order. Members and groups ascend.
///
/// Errors   invalid_argument unless size divides the number of heads.
inline Expected<std::vector<std::vector<index_t>>> similar_groups(const Matrix& similarity, index_t size) {
  const index_t n = similarity.rows();
  if (n == 0 || similarity.cols() != n || size < 1 || n % size != 0) return Status::invalid_argument;
  struct Pair {
    double s;
    index_t a, b;
  };
  std::vector<Pair> pairs;
  for (index_t a = 0; a < n; ++a)
    for (index_t b = a + 1; b < n; ++b) pairs.push_back({similarity(a, b), a, b});
  std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& x, const Pair& y) { return x.s > y.s; });
  std::vector<std::vector<index_t>> groups;
  std::vector<index_t> of(static_cast<std::size_t>(n), -1);
  const auto group = [&](index_t h) -> index_t& { return of[static_cast<std::size_t>(h)]; };
  const auto join = [&](index_t h, index_t g) {
    auto& members = groups[static_cast<std::size_t>(g)];
    if (static_cast<index_t>(members.size()) == size) return;
    members.push_back(h), group(h) = g;
  };
  for (const Pair& p : pairs) {
    if (group(p.a) >= 0 && group(p.b) >= 0) continue;
    if (group(p.a) < 0 && group(p.b) < 0) {
      if (size < 2 || static_cast<index_t>(groups.size()) == n / size) continue;
      groups.emplace_back();
      const auto g = static_cast<index_t>(groups.size()) - 1;
      join(p.a, g), join(p.b, g);
    } else if (group(p.a) < 0) {
      join(p.a, group(p.b));
    } else {
      join(p.b, group(p.a));
    }
  }
  for (index_t h = 0; h < n; ++h) {
    for (index_t g = 0; group(h) < 0 && g < static_cast<index_t>(groups.size()); ++g) join(h, g);
    if (group(h) >= 0) continue;
    groups.emplace_back();
    join(h, static_cast<index_t>(groups.size()) - 1);
  }
  for (auto& g : groups) std::sort(g.begin(), g.end());
  std::sort(groups.begin(), groups.end());
  return groups;
}

}  // namespace kvcondense::lowrank::fit
