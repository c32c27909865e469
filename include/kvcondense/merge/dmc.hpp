#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/evict/blocks/no_score.hpp>
#include <kvcondense/merge/blocks/joined.hpp>
#include <kvcondense/merge/blocks/thresholds.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Joins a token to the newest slot of its head, where a model that was trained for it says so.
///
/// Idea     one component of every key says whether the token takes a slot of its own or is averaged into the newest one, one
///          component of the query what it counts there; training teaches the model to get along with few slots.
/// Source   Dynamic Memory Compression, arXiv:2403.09636; the form of the published code (NVIDIA/Megatron-LM, branch dmc).
/// Needs    weights trained for it. Queries come with `append`, since tokens join before they are attended.
/// Shapes   decisions per KV head; weights by the mean of the group's query components. Heads come to hold different numbers
///          of slots.
/// Cost     per token at most `window` rows summed. Per head the newest `window` tokens as they came, in float32, and those that
///          no step has seen; nothing per slot.
/// Numbers  key component > init joins, the first token never; weight sigmoid(query component + init) + slack. A slot is the
///          weighted mean of at most `window` of its tokens (0: of all), summed in float32 in their order and rounded once;
///          keys are summed without rotation and turned to the newest position. The component is 0 in what is stored and
///          compared, before the rotation and behind it. Query i sees its own slot as it is at token i, and the slots that
///          were full before: the same numbers however tokens come in calls. With `reindex` or `rerotate` components are
///          cleared before the rotation only.
/// Differs  taking tokens back that a step has seen takes the slot that holds the newest of them, with all that is in it.
///          Accumulated scores of an eviction stage begin anew in a slot that grew.
/// Errors   invalid_argument when window < 0, init or slack are not finite, slack < 0, or the RoPE does not fit; append: missing_input
///          without queries, invalid_argument where the queries' components are not finite.
struct Dmc {
  static constexpr Descriptor about{"dmc", Stage::merge, "arXiv:2403.09636"};
  static constexpr bool trained = true;
  static constexpr Inputs needs{};

  index_t window = 12;
  float init = 5.0f;
  float slack = 0.0078125f;
  bool first = false;   ///< the first component instead of the last
  bool rotated = true;  ///< queries and keys come with the model's rotation
  RopeConfig rope{};

  constexpr auto pipeline() const {
    return Pipeline{evict::NoScore{}, Joined{{true, window, init, slack, first, rotated}}, EveryLink{}, Summed{},
                    Target::none, prim::RowSplit::none, Mass::none, Place::as_cached, rope};
  }
  Status validate(const CacheShape& shape) const {
    const auto finite = [](float x) { return x - x == 0.0f; };
    if (window < 0 || !finite(init) || !finite(slack) || slack < 0.0f || shape.head_dim < 2) return Status::invalid_argument;
    return rotated ? prim::validate_rope(rope, shape.head_dim) : Status::ok;
  }
};

static_assert(check_merge_policy<Dmc, Cpu>());

}  // namespace kvcondense::merge
