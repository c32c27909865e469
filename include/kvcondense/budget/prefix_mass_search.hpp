#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

#include <kvcondense/core/apportion.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>

namespace kvcondense::budget {

/// What `find_prefix_mass` looks for.
struct PrefixMassSearch {
  double evict = 0.5;      ///< part of all tokens that leaves
  index_t protect = 2;     ///< tokens of a layer that stay beside those of the level
  double tolerance = 1.0;  ///< stops when fewer tokens than this are missing or too many
  index_t most_steps = 64;
};

/// Where a search ended.
struct PrefixMassLevel {
  double level = 0;         ///< part of its attention that every layer keeps
  index_t steps = 0;
  index_t forgotten = 0;    ///< tokens that leave at the level, before they are scaled to the target
};

/// Bytes of scratch for layers of these lengths together.
inline std::size_t prefix_mass_bytes(index_t layers, index_t tokens) {
  return Scratch::bytes_for<double>(tokens) + Scratch::bytes_for<index_t>(layers) + apportion_bytes(layers);
}

/// Finds one level of cumulative attention for all layers at which a part of all tokens leaves, and how
/// many tokens each layer loses: PrefixKV's bisection.
///
/// Shapes   importance: one row per layer, of any lengths and in any order; forget: one number per layer.
/// Numbers  a layer keeps its most important tokens until their sum reaches the level, and `protect` more.
///          What the bisection leaves open is scaled and rounded by largest remainders: the sum of forget
///          is floor(evict * tokens + 1e-6), where the protected ones leave room for it. Importance that is no
///          positive number counts as 0.
/// Cost     a sort per layer, then a bisection of at most `most_steps` steps in each layer's sums.
/// Errors   invalid_argument unless 0 <= evict <= 1, protect >= 0 and most_steps >= 0;
///          workspace_too_small. Nothing is written then.
inline Status find_prefix_mass(std::span<const std::span<const float>> importance,
                               const PrefixMassSearch& search, index_t* forget, Scratch scratch,
                               PrefixMassLevel* found = nullptr) {
  const bool good = search.evict >= 0.0 && search.evict <= 1.0 && search.protect >= 0 && search.most_steps >= 0;
  if (!good) return Status::invalid_argument;
  const auto layers = static_cast<index_t>(importance.size());
  index_t tokens = 0;
  for (const auto& row : importance) tokens += static_cast<index_t>(row.size());
  auto* sums = scratch.take<double>(tokens);
  auto* leave = scratch.take<index_t>(layers);
  if (sums == nullptr || leave == nullptr || scratch.left() < apportion_bytes(layers)) return Status::workspace_too_small;

  const auto length = [&](index_t l) { return static_cast<index_t>(importance[static_cast<std::size_t>(l)].size()); };
  double* at = sums;
  for (const auto& row : importance) {
    double* const end = std::transform(row.begin(), row.end(), at, [](float x) {
      return x > 0.0f && std::isfinite(x) ? static_cast<double>(x) : 0.0;
    });
    std::sort(at, end, std::greater<>());
    double sum = 0;
    for (double* x = at; x != end; ++x) *x = sum += *x;
    for (double* x = at; x != end; ++x) *x = sum > 0 ? *x / sum : 0.0;
    at = end;
  }
  const auto forgotten = [&](double level) {
    index_t all = 0;
    const double* row = sums;
    for (index_t l = 0; l < layers; ++l) {
      const index_t n = length(l);
      const index_t kept = std::lower_bound(row, row + n, level - 1e-6) - row + 1;
      leave[l] = std::max<index_t>(0, n - kept - search.protect);
      all += leave[l];
      row += n;
    }
    return all;
  };
  const double exact = search.evict * static_cast<double>(tokens);
  PrefixMassLevel r;
  for (double low = 0.0, high = 1.0; r.steps < search.most_steps;) {
    r.level = 0.5 * (low + high);
    r.forgotten = forgotten(r.level);
    ++r.steps;
    const double missing = exact - static_cast<double>(r.forgotten);
    if (std::abs(missing) < search.tolerance) break;
    (missing > 0 ? high : low) = r.level;
  }
  if (r.steps == 0) r.forgotten = forgotten(r.level);
  if (found != nullptr) *found = r;
  return apportion(
      layers, static_cast<index_t>(std::floor(exact + 1e-6)), [&](index_t l) { return static_cast<double>(leave[l]); },
      [](index_t) { return index_t{0}; }, [&](index_t l) { return std::max<index_t>(0, length(l) - search.protect); },
      forget, scratch);
}

}  // namespace kvcondense::budget
