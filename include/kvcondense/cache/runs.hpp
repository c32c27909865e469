#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/config.hpp>

namespace kvcondense::cache {

/// Calls use(to, from, count) for the runs of consecutive numbers in `list`, which ascends: what stays of a
/// full cache is a few long runs, and a run is found in the logarithm of its length.
template <class Use>
void for_runs(const std::int32_t* list, index_t n, Use&& use) {
  const auto together = [&](index_t i, index_t j) { return list[j] - list[i] == j - i; };
  for (index_t i = 0; i < n;) {
    index_t step = 1;
    while (i + step < n && together(i, i + step)) step *= 2;
    index_t good = i + step / 2, bad = std::min(i + step, n);
    while (bad - good > 1) {
      const index_t middle = good + (bad - good) / 2;
      (together(i, middle) ? good : bad) = middle;
    }
    use(i, list[i], bad - i);
    i = bad;
  }
}

/// numbers[i] = numbers[list[i]], for a list that ascends.
template <class T>
void gather_down(T* numbers, const std::int32_t* list, index_t n) {
  for_runs(list, n, [&](index_t to, index_t from, index_t count) {
    if (to != from) std::copy_n(numbers + from, count, numbers + to);
  });
}

}  // namespace kvcondense::cache
