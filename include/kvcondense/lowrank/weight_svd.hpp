#pragma once

#include <kvcondense/lowrank/blocks/basis_rule.hpp>

namespace kvcondense::lowrank {

/// Stores keys and values in the output directions of their weights, decomposed plainly, scaled or whitened.
///
/// Idea     what a matrix can put out is known without any text; which of it inputs use, from a few statistics of them.
/// Source   SVD-LLM, arXiv:2403.07378 (whitening), and ASVD, arXiv:2312.05821 (inputs scaled by (mean |x|)^0.5).
/// Needs    bases of this model: `kvcondense-eval calibrate --method weight_svd --weighing plain|asvd|whitening`; a position
///          stage that stores raw keys.
/// Shapes   as pca.
/// Cost     as palu.
/// Numbers  as palu. Whitened errors are the discarded energies exactly, and the least there are.
/// Errors   as pca.
struct WeightSvdMethod {
  static constexpr Descriptor about{"weight_svd", Stage::lowrank, "arXiv:2403.07378"};
  static constexpr bool key_weights = true;
  static constexpr double keep = 0.5;
  static constexpr RankRule rule = RankRule::part;
  static constexpr index_t tile = 8;
  static constexpr index_t window = 0;
  static constexpr bool tumbles = false;
};

using WeightSvd = KnownBases<WeightSvdMethod>;

}  // namespace kvcondense::lowrank
