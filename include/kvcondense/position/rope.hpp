#pragma once

#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::position {

using RopeConfig = prim::RopeConfig;
using RopePairing = prim::RopePairing;
using RopeScaling = prim::RopeScaling;

/// Can a cache of this shape rotate its keys by this configuration?
inline Status validate_rope(const RopeConfig& rope, const CacheShape& shape) {
  return prim::validate_rope(rope, shape.head_dim);
}

}  // namespace kvcondense::position
