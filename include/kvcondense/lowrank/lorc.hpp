#pragma once

#include <kvcondense/lowrank/blocks/basis_rule.hpp>

namespace kvcondense::lowrank {

/// Decomposes the weights of keys and values, with ranks that fall with depth.
///
/// Idea     an error of an early layer is amplified by all later ones: layers keep ranks by the product of condition numbers
///          from there to the end.
/// Source   LoRC, arXiv:2410.03111.
/// Needs    bases of this model with ranks (rule=table): `kvcondense-eval calibrate --method lorc`; a position stage that stores
///          raw keys.
/// Shapes   as pca.
/// Cost     as palu.
/// Numbers  as palu. Ranks are linear in the logarithm of a layer's product of condition numbers; the paper does not say how
///          it maps them.
/// Errors   as pca.
struct LorcMethod {
  static constexpr Descriptor about{"lorc", Stage::lowrank, "arXiv:2410.03111"};
  static constexpr bool key_weights = true;
  static constexpr double keep = 0.5;
  static constexpr RankRule rule = RankRule::table;
  static constexpr index_t tile = 1;
  static constexpr index_t window = 0;
  static constexpr bool tumbles = false;
};

using Lorc = KnownBases<LorcMethod>;

}  // namespace kvcondense::lowrank
