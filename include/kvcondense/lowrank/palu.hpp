#pragma once

#include <kvcondense/lowrank/blocks/basis_rule.hpp>

namespace kvcondense::lowrank {

/// Stores the output of a projection's right factor; keys are reconstructed tile by tile, values absorbed.
///
/// Idea     keys before rotation and values are outputs of matrices, which calibration inputs show to be nearly of low
///          rank; the factors with the least error of those outputs come from a whitened decomposition.
/// Source   Palu, arXiv:2407.21118, decomposing head by head; its Hadamard transform of coordinates is hadamard(...).
/// Needs    bases of this model: `kvcondense-eval calibrate --method palu`; a position stage that stores raw keys.
/// Shapes   as pca.
/// Cost     as pca, and head_dim * rank multiplications per key that is read: it is reconstructed, rotated and scored in
///          tiles, and no row of keys is ever written.
/// Numbers  as pca. U^t W = Sigma V^t S^-1 for the decomposition of W S: the coordinates that a right factor makes of an
///          input are those that U makes of its output, so bases are orthonormal and the engine's weights stay as they are.
/// Differs  groups of one head; ranks by Fisher information take gradients, which calibration does not make.
/// Errors   as pca.
struct PaluMethod {
  static constexpr Descriptor about{"palu", Stage::lowrank, "arXiv:2407.21118"};
  static constexpr bool key_weights = true;
  static constexpr double keep = 0.5;
  static constexpr RankRule rule = RankRule::part;
  static constexpr index_t tile = 8;
  static constexpr index_t window = 0;
  static constexpr bool tumbles = false;
};

using Palu = KnownBases<PaluMethod>;

}  // namespace kvcondense::lowrank
