#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/no_score.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps every token.
///
/// Idea     the eviction stage of a recipe that names none.
/// Source   none.
/// Needs    nothing.
/// Shapes   none.
/// Cost     none.
/// Numbers  none.
/// Errors   none.
struct KeepAll {
  static constexpr Descriptor about{"keep_all", Stage::evict, "none"};
  static constexpr Inputs needs{};

  constexpr auto pipeline() const {
    return Pipeline{NoScore{}, NoPool{}, NoProtect{}, Unlimited{}, Fixed{}, Never{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

static_assert(check_eviction_policy<KeepAll, Cpu>());

}  // namespace kvcondense::evict
