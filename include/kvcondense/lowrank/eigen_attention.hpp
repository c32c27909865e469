#pragma once

#include <kvcondense/lowrank/blocks/basis_rule.hpp>

namespace kvcondense::lowrank {

/// Stores keys and values as coordinates in the principal directions of keys and queries together, and of values.
///
/// Idea     what counts are products of keys with queries, so directions are sought in both; a budget for the error of a
///          layer's output says how many of them each layer keeps.
/// Source   Eigen Attention, arXiv:2408.05646.
/// Needs    bases of this model: `kvcondense-eval calibrate --method eigen_attention` makes them; of raw keys (without
///          queries, as published for models with RoPE) or of rotated ones.
/// Shapes   as pca.
/// Cost     as pca; with raw keys every key is reconstructed and rotated when it is read.
/// Numbers  as pca. A head keeps as many directions as have a running sum of singular values (not of their squares)
///          below `keep` of the sum of all; rule=table takes the ranks that calibration searched by output error.
/// Errors   as pca.
struct EigenAttentionMethod {
  static constexpr Descriptor about{"eigen_attention", Stage::lowrank, "arXiv:2408.05646"};
  static constexpr double keep = 0.9;
  static constexpr RankRule rule = RankRule::spread;
  static constexpr index_t tile = 1;
  static constexpr index_t window = 0;
  static constexpr bool tumbles = false;
};

using EigenAttention = KnownBases<EigenAttentionMethod>;

}  // namespace kvcondense::lowrank
