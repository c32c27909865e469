#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/k_means.hpp>
#include <kvcondense/retrieve/blocks/codes.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Centroids of a head as a fit leaves them in `UnitState::found`.
///
///   one level: K directions [dim], K means [dim], K counts; two levels: also M coarse directions, M coarse means, and of
///   every fine centroid which coarse one it belongs to; then the thresholds of both levels and K and M.
struct FoundClusters {
  float* at = nullptr;
  index_t fine = 0, coarse = 0, dim = 0;

  static index_t floats(index_t fine, index_t coarse, index_t dim) { return fine * (2 * dim + 1) + coarse * 2 * dim + (coarse > 0 ? fine : 0) + 4; }
  /// False where the numbers are no such fit.
  static bool read(float* found, index_t size, index_t dim, FoundClusters& out) {
    if (size < 4) return false;
    const float k = found[size - 2], m = found[size - 1];
    if (!(k >= 1.0f && k <= 8192.0f && m >= 0.0f && m <= k && m <= 4096.0f) || k != std::floor(k) || m != std::floor(m)) return false;
    out = {found, static_cast<index_t>(k), static_cast<index_t>(m), dim};
    if (floats(out.fine, out.coarse, dim) != size) return false;
    for (index_t c = 0; out.coarse > 0 && c < out.fine; ++c)
      if (const float p = out.parent()[c]; !(p >= 0.0f && p < m) || p != std::floor(p)) return false;
    return true;
  }
  float* directions() const { return at; }
  float* means() const { return at + fine * dim; }
  float* counts() const { return at + 2 * fine * dim; }
  float* coarse_directions() const { return counts() + fine; }
  float* coarse_means() const { return coarse_directions() + coarse * dim; }
  float* parent() const { return coarse_means() + coarse * dim; }
  float* thresholds() const { return parent() + (coarse > 0 ? fine : 0); }

  /// The score of one key of every cluster: softmax of scale * q . mean, a cluster counting as many times as it has keys.
  static void softmax(const float* query, const float* means, const float* counts, index_t n, index_t dim, float scale, float* out) {
    float top = -std::numeric_limits<float>::infinity();
    for (index_t c = 0; c < n; ++c) {
      float sum = 0.0f;
      for (index_t d = 0; d < dim; ++d) sum += query[d] * means[c * dim + d];
      out[c] = scale * sum;
      if (counts[c] > 0.0f) top = std::max(top, out[c]);
    }
    double total = 0.0;
    for (index_t c = 0; c < n; ++c) {
      out[c] = std::exp(out[c] - top);
      total += static_cast<double>(counts[c]) * static_cast<double>(out[c]);
    }
    for (index_t c = 0; c < n; ++c) out[c] = static_cast<float>(static_cast<double>(out[c]) / total);
  }

  /// Scores of the fine clusters of one query; 0 below a coarse cluster that stays under its threshold.
  void score(const float* query, float scale, float* out) const {
    float numbers[2 * most_coarse];
    if (coarse == 0) return softmax(query, means(), counts(), fine, dim, scale, out);
    float *sizes = numbers, *scores = numbers + most_coarse;
    std::fill_n(sizes, coarse, 0.0f);
    for (index_t c = 0; c < fine; ++c) sizes[static_cast<index_t>(parent()[c])] += counts()[c];
    softmax(query, coarse_means(), sizes, coarse, dim, scale, scores);
    const float least = thresholds()[1];
    const auto survives = [&](index_t c) { return scores[static_cast<index_t>(parent()[c])] > least; };
    // Only keys of clusters that survive count.
    float top = -std::numeric_limits<float>::infinity();
    for (index_t c = 0; c < fine; ++c) {
      float sum = 0.0f;
      for (index_t d = 0; d < dim; ++d) sum += query[d] * means()[c * dim + d];
      out[c] = scale * sum;
      if (survives(c) && counts()[c] > 0.0f) top = std::max(top, out[c]);
    }
    double total = 0.0;
    for (index_t c = 0; c < fine; ++c) {
      out[c] = survives(c) ? std::exp(out[c] - top) : 0.0f;
      total += static_cast<double>(counts()[c]) * static_cast<double>(out[c]);
    }
    for (index_t c = 0; c < fine && total > 0.0; ++c) out[c] = static_cast<float>(static_cast<double>(out[c]) / total);
  }
  static constexpr index_t most_coarse = 4096;
};

/// Summary: clusters of keys by direction, found when the first prompt ends, and the label of every slot. A score is that of
/// one key of the slot's cluster.
struct KeyClusters {
  double part = 0.05;         ///< clusters per key
  double coarse_part = 0.0;   ///< coarse clusters per key; 0: one level
  index_t observe = 100;      ///< newest keys and queries of the prompt, that no cluster is made of
  index_t iterations = 300;
  double quantile = 0.7;      ///< of keys' scores, the fine threshold
  double coarse_quantile = 0.7;

  static constexpr index_t most = 8192;
  constexpr bool slots_scored() const { return true; }
  constexpr index_t size() const { return 1; }
  std::size_t plane_bytes(const CacheShape&, int plane) const { return plane == 0 ? 2 : 0; }
  std::size_t read_bytes(const CacheShape& shape, index_t n) const {
    return static_cast<std::size_t>(n) * 2 + static_cast<std::size_t>(clusters(n + observe) * shape.head_dim) * sizeof(float);
  }
  constexpr index_t width(const CacheShape&) const { return most; }
  constexpr index_t clusters(index_t slots) const {
    return std::clamp<index_t>(static_cast<index_t>(part * static_cast<double>(slots - observe) + 1e-9), 1, most);
  }
  constexpr index_t coarse_clusters(index_t slots) const {
    if (coarse_part <= 0.0) return 0;
    const auto n = static_cast<index_t>(coarse_part * static_cast<double>(slots - observe) + 1e-9);
    return std::clamp<index_t>(n, 1, std::min(clusters(slots), FoundClusters::most_coarse));
  }

  index_t found_floats(const CacheShape& shape, index_t slots) const {
    return FoundClusters::floats(clusters(slots), coarse_clusters(slots), shape.head_dim);
  }
  bool fits(const CacheShape& shape, index_t floats) const { return floats >= FoundClusters::floats(1, 0, shape.head_dim); }
  constexpr bool fit_queries() const { return true; }
  template <Backend B = Cpu>
  std::size_t fit_bytes(const CacheShape& shape, index_t slots) const {
    const index_t k = clusters(slots);
    return prim::KMeans<B>::fit_bytes(std::max(slots, k), shape.head_dim, k) + 3 * Scratch::bytes_for<float>(k) +
           2 * Scratch::bytes_for<std::int32_t>(k) + Scratch::bytes_for<float>(16 * max_head_dim);
  }
  template <Backend B>
  void fit(const HeadRows<B>& rows, const PromptQueries& queries, UnitState& state, const Scratch& scratch) const {
    const index_t dim = rows.shape->head_dim, n = rows.slots - observe;
    if (n < 1 || queries.size() < 1) return;
    state.found.shrink(0);
    FoundClusters found{nullptr, clusters(rows.slots), coarse_clusters(rows.slots), dim};
    for (index_t i = 0; i < found_floats(*rows.shape, rows.slots); ++i) state.found.append_reserved(0.0f);
    found.at = state.found.data();
    found.thresholds()[2] = static_cast<float>(found.fine), found.thresholds()[3] = static_cast<float>(found.coarse);
    Scratch own = scratch;
    prim::KMeans<B>::fit(
        [&](index_t first, prim::RowBlock<float> out) {
          rows.keys->read(rows.at.head, first, out);
          for (index_t i = 0; i < out.rows; ++i) normalise(out.data + i * out.step, dim);
        },
        n, dim, {found.fine, iterations, 0}, found.directions(), own);
    gather<B>(found, n, [&](index_t first, prim::RowBlock<float> out) { rows.keys->read(rows.at.head, first, out); });
    if (found.coarse > 0) cluster_again<B>(found, iterations, scratch);
    calibrate(found, *rows.shape, rows.at.head, queries, scratch);
  }

  /// Means and counts of the keys that lie nearest to each direction.
  template <Backend B, class Read>
  static void gather(const FoundClusters& found, index_t n, Read&& read) {
    constexpr index_t tile = 16;
    float keys[tile * max_head_dim], unit[max_head_dim];
    const index_t dim = found.dim;
    for (index_t i = 0; i < n; i += tile) {
      const index_t m = std::min(tile, n - i);
      read(i, prim::RowBlock<float>{keys, m, dim});
      for (index_t k = 0; k < m; ++k) {
        std::copy_n(keys + k * dim, dim, unit);
        normalise(unit, dim);
        std::int32_t label = 0;
        prim::KMeans<B>::nearest({unit, 1, dim}, dim, found.directions(), found.fine, &label);
        for (index_t d = 0; d < dim; ++d) found.means()[label * dim + d] += keys[k * dim + d];
        found.counts()[label] += 1.0f;
      }
    }
    for (index_t c = 0; c < found.fine; ++c)
      for (index_t d = 0; found.counts()[c] > 0.0f && d < dim; ++d) found.means()[c * dim + d] /= found.counts()[c];
  }
  /// Coarse clusters of the fine means; a coarse mean is that of its keys.
  template <Backend B>
  static void cluster_again(const FoundClusters& found, index_t rounds, const Scratch& scratch) {
    const index_t dim = found.dim;
    Scratch own = scratch;
    float row[max_head_dim];
    const auto direction = [&](index_t c, float* out) {
      std::copy_n(found.means() + c * dim, dim, out);
      normalise(out, dim);
    };
    prim::KMeans<B>::fit(
        [&](index_t first, prim::RowBlock<float> out) {
          for (index_t i = 0; i < out.rows; ++i) direction(first + i, out.data + i * out.step);
        },
        found.fine, dim, {found.coarse, rounds, 0}, found.coarse_directions(), own);
    for (index_t c = 0; c < found.fine; ++c) {
      std::int32_t label = 0;
      direction(c, row);
      prim::KMeans<B>::nearest({row, 1, dim}, dim, found.coarse_directions(), found.coarse, &label);
      found.parent()[c] = static_cast<float>(label);
    }
    coarse_means(found);
  }
  static void coarse_means(const FoundClusters& found) {
    const index_t dim = found.dim;
    for (index_t m = 0; m < found.coarse; ++m) {
      float* mean = found.coarse_means() + m * dim;
      float size = 0.0f;
      std::fill_n(mean, dim, 0.0f);
      for (index_t c = 0; c < found.fine; ++c) {
        if (static_cast<index_t>(found.parent()[c]) != m) continue;
        size += found.counts()[c];
        for (index_t d = 0; d < dim; ++d) mean[d] += found.counts()[c] * found.means()[c * dim + d];
      }
      for (index_t d = 0; size > 0.0f && d < dim; ++d) mean[d] /= size;
    }
  }
  /// Thresholds: quantiles of the mean score of keys over the newest queries, all clusters counted.
  void calibrate(const FoundClusters& found, const CacheShape& shape, index_t head, const PromptQueries& queries, const Scratch& scratch) const {
    Scratch own = scratch;
    float* mean = own.take<float>(found.fine);
    float* one = own.take<float>(found.fine);
    float* sizes = own.take<float>(found.fine);
    auto* order = own.take<std::int32_t>(found.fine);
    if (mean == nullptr || one == nullptr || sizes == nullptr || order == nullptr) return;
    const float scale = shape.softmax_scale;
    const index_t first = std::max<index_t>(0, queries.size() - std::max<index_t>(observe, 1));
    const auto threshold = [&](const float* means, const float* counts, index_t n, double rho) {
      float q[max_head_dim];
      std::fill_n(mean, n, 0.0f);
      index_t rows = 0;
      for (index_t t = first; t < queries.size(); ++t)
        for (index_t g = 0; g < shape.group(); ++g, ++rows) {
          queries.read(head * shape.group() + g, t, q);
          FoundClusters::softmax(q, means, counts, n, found.dim, scale, one);
          for (index_t c = 0; c < n; ++c) mean[c] += one[c];
        }
      for (index_t c = 0; c < n; ++c) mean[c] /= static_cast<float>(rows), order[c] = static_cast<std::int32_t>(c);
      return weighted_quantile(mean, counts, order, n, rho);
    };
    found.thresholds()[0] = threshold(found.means(), found.counts(), found.fine, quantile);
    if (found.coarse == 0) return;
    std::fill_n(sizes, found.coarse, 0.0f);
    for (index_t c = 0; c < found.fine; ++c) sizes[static_cast<index_t>(found.parent()[c])] += found.counts()[c];
    found.thresholds()[1] = threshold(found.coarse_means(), sizes, found.coarse, coarse_quantile);
  }
  /// The quantile, linear between neighbours, of numbers that occur `counts` times each.
  static float weighted_quantile(const float* x, const float* counts, std::int32_t* order, index_t n, double rho) {
    std::sort(order, order + n, [&](auto a, auto b) { return x[a] < x[b]; });
    double total = 0.0;
    for (index_t c = 0; c < n; ++c) total += static_cast<double>(counts[c]);
    if (total < 1.0) return 0.0f;
    const double place = rho * (total - 1.0), low = std::floor(place);
    const auto at = [&](double i) {
      double before = 0.0;
      for (index_t c = 0; c < n; ++c) {
        before += static_cast<double>(counts[order[c]]);
        if (before > i) return static_cast<double>(x[order[c]]);
      }
      return static_cast<double>(x[order[n - 1]]);
    };
    const double a = at(low), b = at(std::min(low + 1.0, total - 1.0));
    return static_cast<float>(a + (place - low) * (b - a));
  }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t, index_t first, index_t last, UnitState& state) const {
    FoundClusters found;
    const index_t dim = rows.shape->head_dim;
    if (!FoundClusters::read(state.found.data(), state.found.size(), dim, found)) return;
    float unit[max_head_dim];
    SlotCodes::each_tile(rows, first, last, [&](index_t slot, prim::RowBlock<const float> keys) {
      for (index_t i = 0; i < keys.rows; ++i) {
        std::copy_n(keys.data + i * keys.step, dim, unit);
        normalise(unit, dim);
        std::int32_t label = 0;
        prim::KMeans<B>::nearest({unit, 1, dim}, dim, found.directions(), found.fine, &label);
        SlotCodes::put(state, slot + i, 0, 1, 2, label);
      }
    });
  }
  template <Backend B>
  void prepare(const ReadView<B>& view, index_t head, const float* query, float* out) const {
    FoundClusters found;
    const auto& numbers = view.state[head].found;
    std::fill_n(out, most, 0.0f);
    if (FoundClusters::read(const_cast<float*>(numbers.data()), numbers.size(), view.shape.head_dim, found))
      found.score(query, view.shape.softmax_scale, out);
  }
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> tables,
             prim::RowBlock<float> out) const {
    prim::CodeScores<B>::scores(view.state[head].plane[0].data(), 2, 1, most, first, count, tables, out);
  }

  static void normalise(float* row, index_t dim) {
    float sum = 0.0f;
    for (index_t d = 0; d < dim; ++d) sum += row[d] * row[d];
    const float inv = sum > 0.0f ? 1.0f / std::sqrt(sum) : 0.0f;
    for (index_t d = 0; d < dim; ++d) row[d] *= inv;
  }
};

/// Selector: slots that score more than their head's threshold.
struct AboveThreshold {
  double threshold = 0.0;  ///< for all heads; 0: what the fit found for each

  template <Backend B>
  constexpr bool takes_all(const ReadView<B>&, index_t, index_t) const {
    return false;
  }
  std::size_t workspace_bytes(const CacheShape&, index_t, index_t) const { return 0; }
  template <Backend B>
  Status run(Context<B>&, const ReadView<B>& view, RaggedView<const float> scores, const UnitLists& lists, Scratch&) const {
    for (index_t r = 0; r < scores.heads; ++r) {
      FoundClusters found;
      const auto& numbers = view.state[r * view.heads() / scores.heads].found;
      const bool good = FoundClusters::read(const_cast<float*>(numbers.data()), numbers.size(), view.shape.head_dim, found);
      const float least = threshold > 0.0 ? static_cast<float>(threshold) : good ? found.thresholds()[0] : 0.0f;
      lists.count[r] = 0;
      for (index_t i = 0; i < scores.length(r); ++i)
        if (scores.row(r)[i] > least) lists.units.row(r)[lists.count[r]++] = static_cast<std::int32_t>(i);
    }
    return Status::ok;
  }
};

}  // namespace kvcondense::retrieve
