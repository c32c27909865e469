#pragma once

#include <algorithm>
#include <numeric>

#include <kvcondense/core/config.hpp>

namespace kvcondense {

/// When exact window slots become codes: after a step that leaves `window` of them, the oldest
/// floor((window - keep) / block) * block do. `block == 0` means never. Where a codec is found from the slots that
/// are coded first, those are at least `first`. `whole`: what is there first becomes codes at once, later all but `keep`
/// whenever that is a block or more.
struct Flush {
  index_t block = 1;
  index_t keep = 0;
  index_t first = 0;
  bool whole = false;

  bool operator==(const Flush&) const = default;
};

/// Slots of a window of `window` that a rule codes now; `coded`: whether some were before.
KVCONDENSE_HD constexpr index_t due_of(const Flush& rule, index_t window, bool coded) {
  if (rule.block == 0 || window <= rule.keep) return 0;
  const index_t most = window - rule.keep, blocks = most / rule.block * rule.block;
  return !rule.whole ? blocks : !coded || blocks > 0 ? most : 0;
}

/// No window of at most `window` slots has more due, whatever was coded.
constexpr index_t most_due_of(const Flush& rule, index_t window) { return std::max(due_of(rule, window, true), due_of(rule, window, false)); }
/// No window of at most `window` slots keeps more when what is due has left it.
constexpr index_t most_left_of(const Flush& rule, index_t window) {
  return rule.block == 0 ? window : std::min(window, rule.keep + rule.block - 1);
}

/// Whole blocks of `block` slots; right after a flush the window may be empty (KIVI keys).
constexpr Flush block_flush(index_t block) { return {block, 0, 0}; }

/// Whole blocks, but the newest `keep` slots never enter one.
constexpr Flush block_flush_keep(index_t block, index_t keep) { return {block, keep, 0}; }

/// One by one, all but the newest `keep` slots (KIVI values).
constexpr Flush fifo_flush(index_t keep) { return {1, keep, 0}; }

/// A prompt at once, then the whole window when it is full (Hugging Face's quantized cache).
constexpr Flush whole_flush(index_t block) { return {block, 0, 0, true}; }

/// Every slot at once.
constexpr Flush immediate_flush() { return {1, 0, 0}; }

/// Both rules at once: what either keeps stays, and blocks are whole for both. A rule that never codes says nothing.
constexpr Flush both(const Flush& a, const Flush& b) {
  if (a.block == 0 || b.block == 0) return a.block == 0 ? b : a;
  return {std::lcm(a.block, b.block), std::max(a.keep, b.keep), std::max(a.first, b.first), a.whole || b.whole};
}

}  // namespace kvcondense
