#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>

namespace kvcondense {

/// The scale of the weights at which everyone's part, within its bounds, adds up to `total`, or to just
/// below it.
///
/// Shapes   weight(i) -> double, positive; least(i) and most(i) -> index_t.
/// Cost     a pass over the units, about 64 where bounds bind; no memory.
template <class Weight, class Least, class Most>
double share_scale(index_t units, index_t total, const Weight& weight, const Least& least, const Most& most) {
  double sum = 0;
  for (index_t i = 0; i < units; ++i) sum += weight(i);
  const auto all = [&](double scale) {
    double parts = 0;
    for (index_t i = 0; i < units; ++i)
      parts += std::clamp(weight(i) * scale, static_cast<double>(least(i)), static_cast<double>(most(i)));
    return parts;
  };
  const double wanted = static_cast<double>(total), free = units > 0 ? wanted / sum : 0.0;
  if (std::abs(all(free) - wanted) <= 1e-9 * wanted) return free;
  double low = 0, high = free;
  while (all(high) < wanted && high < 1e300) high *= 2;
  for (int i = 0; i < 64; ++i) {
    const double middle = 0.5 * (low + high);
    (all(middle) <= wanted ? low : high) = middle;
  }
  return low;
}

/// What `apportion` takes from its scratch.
inline std::size_t apportion_bytes(index_t units) {
  return 2 * Scratch::bytes_for<double>(units) + Scratch::bytes_for<index_t>(units);
}

/// Divides `total` places among `units` in proportion to weights, none less than its least and none more
/// than its most; whole numbers, and the total is exact.
///
/// Shapes   weight(i) -> double, least(i) and most(i) -> index_t with least <= most; share: one per unit.
/// Numbers  where bounds bind, the others share what is left, again in proportion. Fractions are rounded
///          by largest remainders, the first of equals. A weight that is no positive number counts as
///          next to nothing. A total that the bounds cannot hold becomes the nearest one that they can.
/// Cost     a few passes, about sixty more where bounds bind; no allocation.
/// Errors   workspace_too_small, nothing written.
template <class Weight, class Least, class Most>
Status apportion(index_t units, index_t total, Weight&& weight, Least&& least, Most&& most,
                 index_t* share, Scratch scratch) {
  auto* w = scratch.take<double>(units);
  auto* exact = scratch.take<double>(units);
  auto* order = scratch.take<index_t>(units);
  if (w == nullptr || exact == nullptr || order == nullptr) return Status::workspace_too_small;
  double largest = 0;
  index_t lo = 0, hi = 0;
  for (index_t i = 0; i < units; ++i) {
    w[i] = weight(i);
    if (std::isfinite(w[i])) largest = std::max(largest, w[i]);
    lo += least(i), hi += most(i);
  }
  total = std::clamp(total, lo, hi);
  const double tiny = largest > 0 ? largest * 1e-9 : 1.0;
  for (index_t i = 0; i < units; ++i)
    if (!std::isfinite(w[i]) || w[i] < tiny) w[i] = tiny;
  const double scale = share_scale(units, total, [w](index_t i) { return w[i]; }, least, most);
  for (index_t i = 0; i < units; ++i)
    exact[i] = std::clamp(w[i] * scale, static_cast<double>(least(i)), static_cast<double>(most(i)));
  index_t left = total;
  for (index_t i = 0; i < units; ++i) {
    share[i] = static_cast<index_t>(std::floor(exact[i]));
    exact[i] -= static_cast<double>(share[i]);
    left -= share[i];
  }
  std::iota(order, order + units, index_t{0});
  const auto before = [&](index_t a, index_t b) { return exact[a] != exact[b] ? exact[a] > exact[b] : a < b; };
  if (left > 0 && left < units) std::nth_element(order, order + left, order + units, before);
  // One round does it, unless a unit was full or numbers were rounded across a whole one.
  for (index_t round = 0; left != 0; ++round) {
    if (round == 1) std::sort(order, order + units, before);
    for (index_t i = 0; i < units && left != 0; ++i) {
      const index_t u = left > 0 ? order[i] : order[units - 1 - i];
      if (left > 0 && share[u] < most(u)) ++share[u], --left;
      else if (left < 0 && share[u] > least(u)) --share[u], ++left;
    }
  }
  return Status::ok;
}

}  // namespace kvcondense
