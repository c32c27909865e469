#pragma once

#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partial_rows.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads the tokens that score best in the few directions that carry most of a head's queries, as many as lie near the best.
///
/// Idea     an orthogonal map changes no logit, and one found from queries gathers their magnitude in few columns: those alone
///          say which tokens matter, and how many.
/// Source   Lee et al., InfiniGen, OSDI 2024, arXiv:2406.19707; snu-comparch/InfiniGen.
/// Needs    ModelFacts::query_axes, the right singular vectors of a sample of each head's queries; a prompt, and the queries of
///          the step that ends it. Any position stage.
/// Shapes   per KV head `part` * head_dim numbers per slot in the cache's dtype; a selection per query head, all of one size.
/// Cost     2 part head_dim bytes of index per slot in 16 bits; a step reads the index and the chosen slots.
/// Numbers  columns: those with the largest sum of |q A| over the first prompt's queries of the group, where each query head
///          weighs alike, int(part * head_dim) of them. Score = sum over them of (q A) (k A), float32. Tokens whose logit lies
///          less than `alpha` below a head's best are counted; each head of the layer reads the mean of those numbers, rounded
///          down, at most the part `share`. Layers below `dense_layers` read all. Ties keep the slot in front; NaN ranks last.
/// Differs  scores come from the layer's own queries, not from a guess by the layer before, which only hides a transfer; A is
///          applied after rotation. The paper's models have no groups: there every head has its own columns.
/// Errors   missing_input without directions; shape_mismatch when they do not fit; invalid_argument unless 0 < part <= 1, alpha
///          >= 0, 0 <= share <= 1, dense_layers >= 0.
struct InfiniGen {
  static constexpr Descriptor about{"infinigen", Stage::retrieve, "arXiv:2406.19707"};
  static constexpr KeyState keys = KeyState::rotated;

  LayerMatrices query_axes{};
  double part = 0.2;
  double alpha = 4.0;
  double share = 0.2;
  index_t dense_layers = 2;

  constexpr auto pipeline() const {
    // Columns are counted from what the directions have: head_dim where they fit the cache.
    const auto columns = static_cast<index_t>(part * static_cast<double>(query_axes.columns) + 1e-9);
    return Pipeline{Tokens{},
                    PartialRows{query_axes, columns > 1 ? columns : 1, true},
                    EachQuery{},
                    PlainScore{},
                    ByHeads{Heads::each},
                    WithinAlpha{alpha, share},
                    KeepEnds{},
                    EveryCall{},
                    Aggregate::mean,
                    dense_layers};
  }
  constexpr const char* missing() const { return query_axes.empty() ? "query_axes" : nullptr; }
  Status validate(const CacheShape& shape) const {
    const bool good = part > 0.0 && part <= 1.0 && alpha >= 0.0 && alpha <= 1e6 && share >= 0.0 && share <= 1.0 && dense_layers >= 0;
    if (!good) return Status::invalid_argument;
    if (missing() != nullptr) return Status::missing_input;
    return basis_fits(query_axes, shape) ? Status::ok : Status::shape_mismatch;
  }
};

static_assert(check_retrieval_policy<InfiniGen, Cpu>());

}  // namespace kvcondense::retrieve
