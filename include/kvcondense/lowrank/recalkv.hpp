#pragma once

#include <kvcondense/lowrank/blocks/basis_rule.hpp>

namespace kvcondense::lowrank {

/// Decomposes the weights of keys and values; decoders of values are fitted to what calibration shows.
///
/// Idea     values are absorbed, so their decoder may be any matrix: least squares by turns over encoder and decoder, from
///          a whitened start.
/// Source   ReCalKV, arXiv:2505.24357.
/// Needs    bases of this model: `kvcondense-eval calibrate --method recalkv`; a position stage that stores raw keys.
/// Shapes   as pca; encoder and decoder of values differ.
/// Cost     as palu.
/// Numbers  as palu.
/// Differs  keys are decomposed head by head, so there are no groups to sort heads into (lowrank/fit/ranks.hpp finds them).
/// Errors   as pca.
struct ReCalKVMethod {
  static constexpr Descriptor about{"recalkv", Stage::lowrank, "arXiv:2505.24357"};
  static constexpr bool key_weights = true;
  static constexpr double keep = 0.5;
  static constexpr RankRule rule = RankRule::part;
  static constexpr index_t tile = 8;
  static constexpr index_t window = 0;
  static constexpr bool tumbles = false;
};

using ReCalKV = KnownBases<ReCalKVMethod>;

}  // namespace kvcondense::lowrank
