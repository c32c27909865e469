#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/prim/found_basis.hpp>

namespace kvcondense::lowrank {

/// Stores keys and values as coordinates in the principal directions of the prompt itself.
///
/// Idea     one text needs fewer directions than all texts do: they are found from the slots that leave the exact window
///          first, a prompt but its newest slots, and kept with the sequence.
/// Source   the per-head form of ShadowKV's and xKV's decomposition of the prompt, arXiv:2410.21465 and arXiv:2503.18893.
/// Needs    keys and values only. Rotated or raw keys: what the cache stores is decomposed.
/// Shapes   per layer and KV head a basis [rank, head_dim] of its own, and a mean where rows are centred.
/// Cost     head_dim^2 multiplications per slot of the prompt and about 10 head_dim^3, once per head; rank * head_dim
///          numbers of float32 per head and side; then as pca.
/// Numbers  the basis never changes: slots that come later are stored in the directions of the first ones. It is found from
///          at least `least` slots.
/// Errors   invalid_argument unless 0 < keep, value_keep <= 1 and the others are not negative.
struct OnlinePca {
  static constexpr Descriptor about{"online_pca", Stage::lowrank, "arXiv:2410.21465"};
  static constexpr Inputs needs{};

  double keep = 0.5;
  double value_keep = 0.5;
  index_t tile = 8;     ///< ranks are multiples of it
  index_t window = 32;  ///< newest slots that stay exact
  index_t least = 64;   ///< slots that directions are found from, at least
  index_t sinks = 0;
  bool center = false;
  bool keys = true;
  bool values = true;

  prim::FoundBasis key_transform(const CacheShape& shape, HeadIndex) const { return basis(keys, keep, shape.head_dim); }
  prim::FoundBasis value_transform(const CacheShape& shape, HeadIndex) const {
    return basis(values, value_keep, shape.values());
  }
  constexpr Flush key_flush() const { return keys ? Flush{1, window, least} : Flush{0, 0}; }
  constexpr Flush value_flush() const { return values ? Flush{1, window, least} : Flush{0, 0}; }
  constexpr bool differs_per_head() const { return false; }

  Status validate(const CacheShape&) const {
    const auto part = [](double x) { return x > 0.0 && x <= 1.0; };
    const bool good = part(keep) && part(value_keep) && tile >= 1 && window >= 0 && least >= 0 && sinks >= 0;
    return good && (keys || values) ? Status::ok : Status::invalid_argument;
  }

 private:
  prim::FoundBasis basis(bool on, double part, index_t dim) const {
    if (!on) return {};
    const auto r = static_cast<index_t>(part * static_cast<double>(dim) + 1e-9) / tile * tile;
    return {static_cast<std::int32_t>(std::clamp(r, std::min(tile, dim), dim)), center};
  }
};

}  // namespace kvcondense::lowrank
