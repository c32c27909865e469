#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/evict/blocks/frozen.hpp>
#include <kvcondense/prim/row_norm.hpp>

namespace kvcondense::evict {

/// Minus the length of the key, which is read once, when it is new.
struct KeyLength {
  constexpr Inputs inputs() const { return {}; }
  constexpr Touches touches() const { return Touches::newest; }
  constexpr bool one_set() const { return false; }

  template <Backend B>
  Status write(Context<B>& ctx, const StepView<B>& view, RaggedView<float> lane) const {
    if (view.keys == nullptr) return Status::missing_input;
    return prim::RowNorm<B>::run(ctx, *view.keys, view.appended, -1.0f, lane);
  }
};

/// Source: minus the length of the key. A score waits in a lane.
using KeyNorm = Frozen<KeyLength>;

}  // namespace kvcondense::evict
