#pragma once

#include <kvcondense/lowrank/blocks/basis_rule.hpp>

namespace kvcondense::lowrank {

/// Stores keys and values as coordinates in the principal directions of each head, known from calibration.
///
/// Idea     keys and values of a head lie near a subspace that is the same for all texts, so a few coordinates say nearly
///          all; queries meet the coordinates themselves, and sums of values come back once per query.
/// Source   the common ground of Eigen Attention, arXiv:2408.05646, and MatryoshkaKV, arXiv:2410.14731.
/// Needs    bases of this model: `kvcondense-eval calibrate --method pca` makes them, of keys as they are attended or,
///          for position stages that store raw keys, of raw ones.
/// Shapes   per layer and KV head a basis [head_dim, columns], energies of the columns, maybe a mean; ranks per head where
///          the rule is not `part`.
/// Cost     rank numbers per slot instead of head_dim; head_dim * rank multiplications per new slot, query row and output
///          row; with raw keys head_dim * rank per slot that is read: keys are reconstructed tile by tile.
/// Numbers  float32; coordinates are stored as the quant stage says, or in the cache's dtype. Ranks are multiples of
///          `tile`, or all columns. The newest `window` slots stay exact.
/// Errors   missing_input without bases; shape_mismatch when they are of another model; incompatible when the bases are
///          of rotated keys and the position stage stores raw ones, or the other way round; invalid_argument for fields out
///          of range and bases with NaN.
struct PcaMethod {
  static constexpr Descriptor about{"pca", Stage::lowrank, "arXiv:2408.05646"};
  static constexpr double keep = 0.5;
  static constexpr RankRule rule = RankRule::part;
  static constexpr index_t tile = 8;
  static constexpr index_t window = 32;
  static constexpr bool tumbles = false;
};

using Pca = KnownBases<PcaMethod>;

}  // namespace kvcondense::lowrank
