#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>

namespace kvcondense::quant {

/// Choices of every item: what each costs and how much error it leaves. An item is what gets its bits by itself: a head of a
/// layer, a pair (keys, values) of a layer, a block of components.
struct BitChoices {
  TensorView<const index_t, 2> cost{};      ///< [items, choices], 0 or more
  TensorView<const double, 2> distortion{}; ///< [items, choices], 0 or more

  index_t items() const { return cost.extent[0]; }
  index_t choices() const { return cost.extent[1]; }
  bool valid() const {
    if (items() < 1 || choices() < 1 || choices() > 256) return false;
    if (distortion.extent[0] != items() || distortion.extent[1] != choices()) return false;
    for (index_t i = 0; i < items(); ++i)
      for (index_t c = 0; c < choices(); ++c)
        if (cost(i, c) < 0 || !(distortion(i, c) >= 0.0 && std::isfinite(distortion(i, c)))) return false;
    return true;
  }
  double total(std::span<const std::int32_t> choice) const {
    double sum = 0.0;
    for (index_t i = 0; i < items(); ++i) sum += distortion(i, choice[static_cast<std::size_t>(i)]);
    return sum;
  }
};

namespace detail {

/// The least sum of distortions at each exact cost up to a budget, and how it comes about.
struct BitTable {
  const BitChoices& from;
  index_t budget;
  double* best = nullptr;        ///< [budget + 1], of all items
  std::uint8_t* chosen = nullptr;  ///< [items, budget + 1]

  static std::size_t bytes(const BitChoices& from, index_t budget) {
    return 2 * Scratch::bytes_for<double>(budget + 1) + Scratch::bytes_for<std::uint8_t>(from.items() * (budget + 1));
  }

  bool fill(Scratch& scratch) {
    best = scratch.take<double>(budget + 1);
    double* before = scratch.take<double>(budget + 1);
    chosen = scratch.take<std::uint8_t>(from.items() * (budget + 1));
    if (best == nullptr || before == nullptr || chosen == nullptr) return false;
    constexpr double none = std::numeric_limits<double>::infinity();
    for (index_t b = 0; b <= budget; ++b) best[b] = b == 0 ? 0.0 : none;
    for (index_t i = 0; i < from.items(); ++i) {
      std::swap(best, before);
      for (index_t b = 0; b <= budget; ++b) {
        best[b] = none;
        for (index_t c = 0; c < from.choices(); ++c) {
          const index_t rest = b - from.cost(i, c);
          if (rest < 0 || !(before[rest] + from.distortion(i, c) < best[b])) continue;
          best[b] = before[rest] + from.distortion(i, c);
          chosen[i * (budget + 1) + b] = static_cast<std::uint8_t>(c);
        }
      }
    }
    return true;
  }
  void trace(index_t b, std::span<std::int32_t> choice) const {
    for (index_t i = from.items() - 1; i >= 0; --i) {
      const std::int32_t c = chosen[i * (budget + 1) + b];
      choice[static_cast<std::size_t>(i)] = c;
      b -= from.cost(i, c);
    }
  }
};

}  // namespace detail

/// Scratch of `allocate_bits` and `bit_front`.
inline std::size_t bit_search_bytes(const BitChoices& from, index_t budget) { return detail::BitTable::bytes(from, budget); }

/// Finds the choices of least summed distortion whose costs stay within a budget.
///
/// Source   the additive model of bit allocation; for caches KVTuner, arXiv:2502.04420, and KVTC, arXiv:2511.01815.
/// Shapes   choice: one per item.
/// Numbers  exact, by dynamic programming in double; of equal sums the smaller cost wins.
/// Cost     items * (budget + 1) * choices steps.
/// Errors   invalid_argument for costs or distortions that are negative or no numbers, shape_mismatch for a list of other length,
///          workspace_too_small, out_of_range where even the cheapest choices cost more. Nothing is written then.
inline Status allocate_bits(const BitChoices& from, index_t budget, std::span<std::int32_t> choice, Scratch scratch) {
  if (budget < 0 || !from.valid()) return Status::invalid_argument;
  if (static_cast<index_t>(choice.size()) != from.items()) return Status::shape_mismatch;
  detail::BitTable table{from, budget};
  if (!table.fill(scratch)) return Status::workspace_too_small;
  index_t at = 0;
  for (index_t b = 1; b <= budget; ++b)
    if (table.best[b] < table.best[at]) at = b;
  if (!std::isfinite(table.best[at])) return Status::out_of_range;
  table.trace(at, choice);
  return Status::ok;
}

/// The same by steps: from the cheapest choice of every item on, always the one that saves most distortion per cost
/// (reverse water filling). As good where each item's steps save less and less.
///
/// Cost     steps * items * choices.
/// Errors   as `allocate_bits`, without scratch.
inline Status allocate_bits_by_steps(const BitChoices& from, index_t budget, std::span<std::int32_t> choice) {
  if (budget < 0 || !from.valid()) return Status::invalid_argument;
  if (static_cast<index_t>(choice.size()) != from.items()) return Status::shape_mismatch;
  const auto cheapest = [&](index_t i) {
    index_t best = 0;
    for (index_t c = 1; c < from.choices(); ++c)
      if (from.cost(i, c) < from.cost(i, best) ||
          (from.cost(i, c) == from.cost(i, best) && from.distortion(i, c) < from.distortion(i, best)))
        best = c;
    return best;
  };
  index_t left = budget;
  for (index_t i = 0; i < from.items(); ++i) left -= from.cost(i, cheapest(i));
  if (left < 0) return Status::out_of_range;
  for (index_t i = 0; i < from.items(); ++i) choice[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(cheapest(i));
  for (;;) {
    index_t item = -1, to = 0;
    double rate = 0.0;
    for (index_t i = 0; i < from.items(); ++i) {
      const index_t now = choice[static_cast<std::size_t>(i)];
      for (index_t c = 0; c < from.choices(); ++c) {
        const index_t more = from.cost(i, c) - from.cost(i, now);
        const double less = from.distortion(i, now) - from.distortion(i, c);
        if (more <= 0 || more > left || !(less / static_cast<double>(more) > rate)) continue;
        rate = less / static_cast<double>(more), item = i, to = c;
      }
    }
    if (item < 0) return Status::ok;
    left -= from.cost(item, to) - from.cost(item, choice[static_cast<std::size_t>(item)]);
    choice[static_cast<std::size_t>(item)] = static_cast<std::int32_t>(to);
  }
}

/// Calls point(cost, distortion) from the cheapest on for every cost up to `budget` at which more bits buy less distortion, with
/// the choices in `choice`: the Pareto front of a model.
///
/// Errors   as `allocate_bits`.
template <class Point>
Status bit_front(const BitChoices& from, index_t budget, std::span<std::int32_t> choice, Scratch scratch, Point&& point) {
  if (budget < 0 || !from.valid()) return Status::invalid_argument;
  if (static_cast<index_t>(choice.size()) != from.items()) return Status::shape_mismatch;
  detail::BitTable table{from, budget};
  if (!table.fill(scratch)) return Status::workspace_too_small;
  double last = std::numeric_limits<double>::infinity();
  for (index_t b = 0; b <= budget; ++b) {
    if (!(table.best[b] < last * (1.0 - 1e-12))) continue;
    last = table.best[b];
    table.trace(b, choice);
    point(b, last);
  }
  return std::isfinite(last) ? Status::ok : Status::out_of_range;
}

}  // namespace kvcondense::quant
