#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::cache {

/// Which of a head's slots stay: a list that ascends, or all but one run of neighbours. The second says what a step of a
/// full cache does without naming every slot of it.
class Kept {
 public:
  static Kept listed(const std::int32_t* list, index_t n) { return {list, n, 0, -1}; }
  static Kept without(index_t first, index_t last, index_t slots) { return {nullptr, slots - (last - first), first, last}; }
  static Kept all(index_t slots) { return without(slots, slots, slots); }
  static Kept ends(prim::Ends e, index_t slots) { return without(e.prefix, slots - e.suffix, slots); }

  index_t size() const { return n_; }
  index_t operator[](index_t i) const { return listed() ? list_[i] : i < first_ ? i : i + (last_ - first_); }
  /// How many slots before `slot` stay.
  index_t below(index_t slot) const {
    if (listed()) return std::lower_bound(list_, list_ + n_, slot) - list_;
    return slot <= first_ ? slot : std::max(slot, last_) - (last_ - first_);
  }
  /// The first slot that leaves, or size() where none before it does.
  index_t first_gap() const {
    if (!listed()) return first_;
    index_t good = 0, bad = n_;  // list[i] == i below `good`
    while (good < bad) {
      const index_t middle = good + (bad - good) / 2;
      if (list_[middle] == middle) good = middle + 1;
      else bad = middle;
    }
    return good;
  }

  /// Calls use(to, from, count) for runs of neighbours that stay, in order: what stays of a full cache is a few long
  /// runs, and a run is found in the logarithm of its length.
  template <class Use>
  void for_runs(Use&& use) const {
    if (!listed()) {
      if (first_ > 0) use(index_t{0}, index_t{0}, first_);
      if (n_ > first_) use(first_, last_, n_ - first_);
      return;
    }
    for (index_t i = 0; i < n_;) {
      const index_t end = run_end(i);
      use(i, static_cast<index_t>(list_[i]), end - i);
      i = end;
    }
  }

  /// Calls use(first, last) for the runs of [begin, end) that leave, in order.
  template <class Use>
  void for_gaps(index_t begin, index_t end, Use&& use) const {
    if (!listed()) {
      const index_t first = std::max(begin, first_), last = std::min(end, last_);
      if (first < last) use(first, last);
      return;
    }
    for (index_t at = begin, i = below(begin); at < end;) {
      const index_t next = i < n_ ? std::min<index_t>(list_[i], end) : end;
      if (at < next) use(at, next);
      if (next == end) return;
      const index_t after = run_end(i);
      at = next + (after - i), i = after;
    }
  }

 private:
  bool listed() const { return last_ < 0; }
  index_t run_end(index_t i) const {
    const auto together = [&](index_t j) { return list_[j] - list_[i] == j - i; };
    index_t step = 1;
    while (i + step < n_ && together(i + step)) step *= 2;
    index_t good = i + step / 2, bad = std::min(i + step, n_);
    while (bad - good > 1) {
      const index_t middle = good + (bad - good) / 2;
      (together(middle) ? good : bad) = middle;
    }
    return bad;
  }

  Kept(const std::int32_t* list, index_t n, index_t first, index_t last) : list_(list), n_(n), first_(first), last_(last) {}

  const std::int32_t* list_;
  index_t n_;
  index_t first_, last_;  ///< the run that leaves; last_ -1: see the list
};

/// numbers[i] = numbers[kept[i]].
template <class T>
void gather_down(T* numbers, const Kept& kept) {
  kept.for_runs([&](index_t to, index_t from, index_t count) {
    if (to != from) std::copy_n(numbers + from, count, numbers + to);
  });
}

}  // namespace kvcondense::cache
