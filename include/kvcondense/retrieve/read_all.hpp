#pragma once

#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Reads every slot in every call: the retrieval stage of a recipe that names none.
///
/// Idea     none; what every other stage is measured against.
/// Source   none.
/// Needs    nothing.
/// Shapes   any.
/// Cost     no index; attention reads all keys and values.
/// Numbers  exact attention over what is stored.
/// Errors   none.
struct ReadAll {
  static constexpr Descriptor about{"read_all", Stage::retrieve, "none"};
  static constexpr KeyState keys = KeyState::any;

  /// A selection that there is none of.
  struct Nothing {
    static constexpr bool active() { return false; }
    static constexpr bool holds() { return false; }
    static constexpr bool fit_queries() { return false; }
    static constexpr index_t longest_call() { return 0; }
    static constexpr index_t reach() { return 0; }
    static constexpr Watch watch() { return {}; }
  };
  constexpr Nothing pipeline() const { return {}; }
  Status validate(const CacheShape&) const { return Status::ok; }
};

}  // namespace kvcondense::retrieve
