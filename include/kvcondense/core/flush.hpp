#pragma once

#include <kvcondense/core/config.hpp>

namespace kvcondense {

/// When exact window slots become codes: after a step that leaves `window` of them, the oldest
/// floor((window - keep) / block) * block do. `block == 0` means never.
struct Flush {
  index_t block = 1;
  index_t keep = 0;

  bool operator==(const Flush&) const = default;
};

/// Whole blocks of `block` slots; right after a flush the window may be empty (KIVI keys).
constexpr Flush block_flush(index_t block) { return {block, 0}; }

/// Whole blocks, but the newest `keep` slots never enter one.
constexpr Flush block_flush_keep(index_t block, index_t keep) { return {block, keep}; }

/// One by one, all but the newest `keep` slots (KIVI values).
constexpr Flush fifo_flush(index_t keep) { return {1, keep}; }

/// Every slot at once.
constexpr Flush immediate_flush() { return {1, 0}; }

}  // namespace kvcondense
