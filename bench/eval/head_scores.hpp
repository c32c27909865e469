#pragma once

#include <engine/matmul.hpp>
#include <eval/recording.hpp>

namespace eval {

/// Attention of one layer's heads to where the same tokens stood before, in a text that is one piece of
/// `segment` tokens again and again; per KV head the largest of its group.
struct ProbeScores {
  std::vector<double> echo;       ///< mean attention to earlier copies of the query's own token
  std::vector<double> induction;  ///< mean attention to what followed them
};
ProbeScores probe_scores(const Recording& probe, index_t layer, index_t segment);

/// What each token drew from all rows of one layer, per query head: [q_heads, tokens].
std::vector<float> column_sums(const Recording& recording, index_t layer);

/// For every pair of KV heads, the products of what changes behind the output projection when they see
/// only `sinks` tokens, the `recent` before the query and itself: summed over channels and the queries
/// at `positions`. [kv_heads, kv_heads]
std::vector<double> gap_products(const Recording& recording, index_t layer, const std::vector<index_t>& positions,
                                 index_t sinks, index_t recent, const engine::PackedMatrix& output);

}  // namespace eval
