#pragma once

#include <kvcondense/lowrank/blocks/basis_rule.hpp>

namespace kvcondense::lowrank {

/// Stores keys and values as coordinates in trained orthogonal bases that serve every rank.
///
/// Idea     principal directions keep rows, not what attention makes of them; bases that are trained on attention's own
///          outputs, with a rank drawn anew in every step, lose less at every rank.
/// Source   MatryoshkaKV, arXiv:2410.14731.
/// Needs    bases of this model: `kvcondense-eval calibrate --method matryoshka` trains them.
/// Shapes   as pca: per layer and KV head a basis [head_dim, head_dim], columns by importance, and a mean; ranks per head
///          where calibration searched them (rule=table).
/// Cost     as pca.
/// Numbers  as pca. Rows are centred: scores of coded slots get q . mean, which exact slots must not share, and outputs
///          their weights times the mean.
/// Differs  the loss is that of each layer's attention output on recorded caches, not of the model's logits, so layers
///          train apart; the published code masks coordinates, here they are not stored.
/// Errors   as pca.
struct MatryoshkaMethod {
  static constexpr Descriptor about{"matryoshka", Stage::lowrank, "arXiv:2410.14731"};
  static constexpr double keep = 0.4;
  static constexpr RankRule rule = RankRule::part;
  static constexpr index_t tile = 8;
  static constexpr index_t window = 0;
  static constexpr bool tumbles = false;
};

using Matryoshka = KnownBases<MatryoshkaMethod>;

}  // namespace kvcondense::lowrank
