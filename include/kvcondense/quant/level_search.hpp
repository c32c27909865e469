#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>

namespace kvcondense::quant {

/// Finds levels for numbers between -1 and 1: weighted k-means in one dimension.
///
/// Source   KVQuant, arXiv:2401.18079, whose weights are squared gradients of the loss (Fisher's diagonal).
/// Shapes   numbers and weights: as many of each, weights empty for all equal; levels: as many as wanted, ascending.
/// Numbers  double; starts from the quantiles of the weights, at most `rounds` rounds. Levels that nothing is nearest to are
///          placed evenly between their neighbours, so that levels ascend. Numbers that are none count as nothing.
/// Cost     a sort, then levels * log(numbers) per round.
/// Errors   invalid_argument without numbers, for weights that are negative or no numbers, or fewer than two levels;
///          shape_mismatch, workspace_too_small. Nothing is written then.
inline Status fit_levels_1d(std::span<const float> numbers, std::span<const float> weights, std::span<float> levels, Scratch scratch,
                            int rounds = 50) {
  struct Entry {
    double x, w;
  };
  const auto n = static_cast<index_t>(numbers.size()), k = static_cast<index_t>(levels.size());
  if (!weights.empty() && weights.size() != numbers.size()) return Status::shape_mismatch;
  for (const float w : weights)
    if (!(w >= 0.0f && std::isfinite(w))) return Status::invalid_argument;
  auto* entry = scratch.take<Entry>(n + 1);
  auto* level = scratch.take<double>(k);
  if (entry == nullptr || level == nullptr) return Status::workspace_too_small;
  index_t many = 0;
  double all = 0.0;
  for (index_t i = 0; i < n; ++i) {
    const double w = weights.empty() ? 1.0 : static_cast<double>(weights[static_cast<std::size_t>(i)]);
    const auto x = static_cast<double>(numbers[static_cast<std::size_t>(i)]);
    if (std::isfinite(x) && w > 0.0) entry[many++] = {x, w}, all += w;
  }
  if (many == 0 || k < 2) return Status::invalid_argument;
  std::sort(entry, entry + many, [](const Entry& a, const Entry& b) { return a.x < b.x; });
  index_t at = 0;
  double sum = entry[0].w;
  for (index_t i = 0; i < k; ++i) {
    const double share = (static_cast<double>(i) + 0.5) / static_cast<double>(k) * all;
    while (at + 1 < many && sum < share) sum += entry[++at].w;
    level[i] = entry[at].x;
  }
  for (int round = 0; round < rounds; ++round) {
    double moved = 0.0;
    index_t from = 0;
    for (index_t i = 0; i < k; ++i) {
      const double end = i + 1 < k ? 0.5 * (level[i] + level[i + 1]) : HUGE_VAL;
      double weight = 0.0, mean = 0.0;
      for (; from < many && entry[from].x < end; ++from) weight += entry[from].w, mean += entry[from].w * entry[from].x;
      if (weight == 0.0) continue;
      mean /= weight;
      moved = std::max(moved, std::abs(mean - level[i]));
      level[i] = mean;
    }
    if (moved < 1e-9) break;
  }
  // Ties and empty levels: strictly ascending, by the smallest steps that float32 can hold where need be.
  for (index_t i = 0; i < k; ++i) {
    float v = static_cast<float>(level[i]);
    if (i > 0) v = std::max(v, std::nextafter(levels[static_cast<std::size_t>(i - 1)] + 1e-6f, HUGE_VALF));
    levels[static_cast<std::size_t>(i)] = v;
  }
  return Status::ok;
}

inline std::size_t fit_levels_bytes(index_t numbers, index_t levels) {
  return Scratch::bytes_for<double>(2 * (numbers + 1)) + Scratch::bytes_for<double>(levels);
}

/// Finds the thresholds of every channel outside of which a part of its numbers lies, half of it at each end.
///
/// Source   KVQuant, arXiv:2401.18079.
/// Shapes   rows [tokens, channels]; lower and upper [channels].
/// Numbers  quantiles, linear between neighbours. Numbers that are none are left out.
/// Errors   invalid_argument unless 0 <= outliers < 1 and every channel has a number; shape_mismatch, workspace_too_small.
inline Status find_thresholds(TensorView<const float, 2> rows, double outliers, std::span<float> lower, std::span<float> upper,
                              Scratch scratch) {
  const index_t tokens = rows.extent[0], channels = rows.extent[1];
  if (!(outliers >= 0.0 && outliers < 1.0)) return Status::invalid_argument;
  if (static_cast<index_t>(lower.size()) != channels || static_cast<index_t>(upper.size()) != channels) return Status::shape_mismatch;
  auto* x = scratch.take<float>(tokens);
  if (x == nullptr) return Status::workspace_too_small;
  for (index_t c = 0; c < channels; ++c) {
    index_t n = 0;
    for (index_t t = 0; t < tokens; ++t)
      if (std::isfinite(rows(t, c))) x[n++] = rows(t, c);
    if (n == 0) return Status::invalid_argument;
    std::sort(x, x + n);
    const auto quantile = [&](double q) {
      const double at = q * static_cast<double>(n - 1);
      const auto i = static_cast<index_t>(at);
      const double part = at - static_cast<double>(i);
      return static_cast<float>((1.0 - part) * static_cast<double>(x[i]) + part * static_cast<double>(x[std::min(i + 1, n - 1)]));
    };
    lower[static_cast<std::size_t>(c)] = quantile(outliers / 2);
    upper[static_cast<std::size_t>(c)] = quantile(1.0 - outliers / 2);
  }
  return Status::ok;
}

}  // namespace kvcondense::quant
