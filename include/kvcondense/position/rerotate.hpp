#pragma once

#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/position/rope.hpp>

namespace kvcondense::position {

/// Re-indexes slots like `Reindex`, for engines that hand over queries and keys already rotated.
///
/// Idea     A rotation is undone exactly by the opposite one: keys are un-rotated once, when they are
///          appended, from the position they came with, and turned by slot order when they are read.
/// Source   Xiao et al., StreamingLLM, arXiv:2309.17453, section 3.2; the rotation identities of RoFormer,
///          arXiv:2104.09864.
/// Needs    the RoPE the engine used, and the positions it used.
/// Shapes   the first rotary_dim of head_dim components turn, in pairs.
/// Cost     as `Reindex`, and one more rotation per appended key and per query.
/// Numbers  one rotation from the original position, never a correction of a correction. The engine's
///          attention factor stays in queries and keys; it is not applied again.
/// Errors   invalid_argument when the configuration does not fit head_dim; not_supported for dynamic_ntk
///          (the engine's frequencies change with the length, so no single rotation undoes them).
struct Rerotate {
  static constexpr Descriptor about{"rerotate", Stage::position, "arXiv:2309.17453"};
  static constexpr bool raw_keys = true;
  static constexpr bool rotated_input = true;

  RopeConfig rope{};  ///< its tables are borrowed for the life of the cache

  Status validate(const CacheShape& shape) const {
    if (rope.scaling == RopeScaling::dynamic_ntk) return Status::not_supported;
    return validate_rope(rope, shape);
  }
};

}  // namespace kvcondense::position
