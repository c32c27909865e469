#pragma once

#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partial_rows.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads the tokens whose keys agree best with the query in the first principal directions.
///
/// Idea     keys of a head lie in few directions: a logit from the first of them ranks tokens well enough.
/// Source   Singhania et al., Loki, NeurIPS 2024, arXiv:2406.02542; hpcgroup/loki.
/// Needs    ModelFacts::key_axes, the principal directions of each head's keys, best first; keys in the form in which
///          they were found: as attention compares them. Any position stage.
/// Shapes   per KV head `columns` numbers per slot in the cache's dtype; a selection per query head.
/// Cost     2 columns bytes of index per slot in 16 bits; a step reads the index and the part `share` of the slots per query
///          head.
/// Numbers  score = sum over the first `columns` of (q E) (k E), float32; int(share * slots) tokens; attention to them is
///          exact. The mean that a fit takes off is not: it adds the same to every logit. Several query tokens: the mean of
///          their scores. Ties keep the slot in front; NaN ranks last.
/// Differs  keys are stored as they are and the leading coordinates beside them; the original stores all keys in the basis.
/// Errors   missing_input without directions; shape_mismatch when they do not fit the cache; invalid_argument unless columns
///          >= 1 and share is in [0, 1].
struct Loki {
  static constexpr Descriptor about{"loki", Stage::retrieve, "arXiv:2406.02542"};
  static constexpr KeyState keys = KeyState::rotated;

  LayerMatrices key_axes{};
  index_t columns = 32;
  double share = 0.25;

  constexpr auto pipeline() const {
    return Pipeline{Tokens{},       PartialRows{key_axes, columns}, EachQuery{},  PlainScore{},
                    ByHeads{Heads::each}, TopShare{{share}},        KeepEnds{},   EveryCall{}};
  }
  constexpr const char* missing() const { return key_axes.empty() ? "key_axes" : nullptr; }
  Status validate(const CacheShape& shape) const {
    if (columns < 1 || !(share >= 0.0 && share <= 1.0)) return Status::invalid_argument;
    if (missing() != nullptr) return Status::missing_input;
    return basis_fits(key_axes, shape) ? Status::ok : Status::shape_mismatch;
  }
};

static_assert(check_retrieval_policy<Loki, Cpu>());

}  // namespace kvcondense::retrieve
