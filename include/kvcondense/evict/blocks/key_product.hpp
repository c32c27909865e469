#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/evict/blocks/frozen.hpp>
#include <kvcondense/prim/row_product.hpp>

namespace kvcondense::evict {

/// `factor` times how far a key reaches along a direction of its head, found beforehand; the key is read once, when it is new.
struct KeyReach {
  HeadRows directions{};  ///< [layers, kv_heads, head_dim]
  float factor = -1.0f;

  constexpr Inputs inputs() const { return {}; }
  constexpr bool rotated_keys() const { return true; }
  constexpr Touches touches() const { return Touches::newest; }
  constexpr bool one_set() const { return false; }

  template <Backend B>
  Status write(Context<B>& ctx, const StepView<B>& view, RaggedView<float> lane) const {
    if (view.keys == nullptr) return Status::missing_input;
    return prim::RowProduct<B>::run(ctx, *view.keys, view.appended, directions.row(HeadIndex{view.layer, 0}), factor, lane);
  }
};

/// Source: the product of a key with its head's direction. A score waits in a lane.
using KeyProduct = Frozen<KeyReach>;

}  // namespace kvcondense::evict
