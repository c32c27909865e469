#pragma once

#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/position/rope.hpp>

namespace kvcondense::position {

/// Gives every slot its place in the cache as position: evicted tokens leave no gap.
///
/// Idea     Keys are stored without rotation and turned by slot order when they are read, so positions
///          never exceed the cache's size, however long the stream is.
/// Source   Xiao et al., StreamingLLM, arXiv:2309.17453, section 3.2.
/// Needs    queries and keys before rotation, and the model's RoPE.
/// Shapes   the first rotary_dim of head_dim components turn, in pairs.
/// Cost     reading turns each key by one of sixteen small angles and each query once per sixteen slots;
///          a table of head_dim * 4 bytes per sixteen slots.
/// Numbers  angles in double from the slot number, never a correction of a correction; the attention
///          factor of YaRN and LongRoPE goes into the softmax scale. Frequencies do not follow the length:
///          dynamic_ntk and longrope use `rope.length`.
/// Errors   invalid_argument when the configuration does not fit head_dim.
struct Reindex {
  static constexpr Descriptor about{"reindex", Stage::position, "arXiv:2309.17453"};
  static constexpr bool raw_keys = true;
  static constexpr bool rotated_input = false;

  RopeConfig rope{};  ///< its tables are borrowed for the life of the cache

  Status validate(const CacheShape& shape) const { return validate_rope(rope, shape); }
};

}  // namespace kvcondense::position
