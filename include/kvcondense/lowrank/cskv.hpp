#pragma once

#include <kvcondense/lowrank/blocks/basis_rule.hpp>

namespace kvcondense::lowrank {

/// Shrinks keys and values by factors that reconstruct them layer by layer; new slots stay exact until a block is full.
///
/// Idea     a factor that starts from the weights, scaled by what activations do, and is then fitted to reconstruct the
///          layer's own keys and values needs no training of the model; exact new slots carry what is just being said.
/// Source   CSKV, arXiv:2409.10593.
/// Needs    bases of this model: `kvcondense-eval calibrate --method cskv` fits them, of raw keys (as published) or of
///          rotated ones; a position stage to match.
/// Shapes   as pca; encoder and decoder differ.
/// Cost     as pca. Values are absorbed: nothing is reconstructed for them.
/// Numbers  as pca. The window tumbles: `window` slots are coded at once when it is full, none before, so between 0 and
///          window - 1 slots are exact after a step, and the step that fills it still attends to all of it exactly.
/// Errors   as pca, and invalid_argument unless window >= 1.
struct CskvMethod {
  static constexpr Descriptor about{"cskv", Stage::lowrank, "arXiv:2409.10593"};
  static constexpr double keep = 0.5;
  static constexpr RankRule rule = RankRule::part;
  static constexpr index_t tile = 1;
  static constexpr index_t window = 32;
  static constexpr bool tumbles = true;
};

using Cskv = KnownBases<CskvMethod>;

}  // namespace kvcondense::lowrank
