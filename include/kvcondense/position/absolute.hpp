#pragma once

#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/position/rope.hpp>

namespace kvcondense::position {

/// Keeps keys at the positions where they were written.
///
/// Idea     Attention under RoPE is relative: slots that leave make gaps, and gaps change nothing for
///          those that stay.
/// Source   RoFormer, arXiv:2104.09864; what most eviction methods do.
/// Needs    keys and queries as attention wants them: the cache never rotates.
/// Shapes   keys and queries as the cache gets them; nothing is rotated.
/// Cost     none.
/// Numbers  none of its own.
/// Errors   none.
struct Absolute {
  static constexpr Descriptor about{"absolute", Stage::position, "arXiv:2104.09864"};
  static constexpr bool raw_keys = false;
  static constexpr bool rotated_input = true;

  RopeConfig rope{};  ///< not read

  Status validate(const CacheShape&) const { return Status::ok; }
};

}  // namespace kvcondense::position
