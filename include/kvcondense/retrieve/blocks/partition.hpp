#pragma once

#include <kvcondense/core/config.hpp>

namespace kvcondense::retrieve {

/// Partition: every `slots` slots are a unit, the first at slot `first`. A last unit that is not full does not
/// compete: its slots are kept, unless `partial_last`.
struct Pages {
  index_t slots = 16;
  index_t first = 0;
  bool partial_last = false;

  constexpr index_t size() const { return slots; }
  constexpr index_t origin() const { return first; }
  constexpr bool partial() const { return partial_last; }
};

/// Partition: every slot is a unit.
struct Tokens {
  constexpr index_t size() const { return 1; }
  constexpr index_t origin() const { return 0; }
  constexpr bool partial() const { return false; }
};

}  // namespace kvcondense::retrieve
