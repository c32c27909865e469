#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/global_local_mass.hpp>
#include <kvcondense/merge/blocks/nearest_kept.hpp>
#include <kvcondense/merge/blocks/thresholds.hpp>
#include <kvcondense/merge/blocks/weights.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Folds the better part of what leaves into kept tokens that say the same in keys and values; the rest is dropped.
///
/// Idea     of what is not kept exactly, some is worth a part in a kept slot, if one is redundant with it in both arrays;
///          what is like nothing kept belongs to a zero class, and goes.
/// Source   EMS, arXiv:2412.08521, of which only the outline is public; every formula here is this library's.
/// Needs    attention of every query row, and the newest queries; an eviction stage that chooses the centres.
/// Shapes   decisions per KV head.
/// Cost     two products per token that may fold and token that stays; 4 bytes per slot for the sum of attention, and
///          one attention of the last `window` queries when something leaves.
/// Numbers  score = max(sum of attention brought to the mean of the window's, the window's). Of what leaves the best
///          `folds` per kept slot may fold; redundancy = cosine of keys * cosine of values where both are positive. Weights
///          are scores, divided by their sum; keys are summed as directions, and as long as their lengths in the mean.
/// Differs  the eviction stage has scores of its own; the paper's are those of this stage. No ragged budgets of its own:
///          ada gives them.
/// Errors   invalid_argument when window < 1, folds < 0, least is not in [0, 1], or the RoPE does not fit; incompatible
///          beside a policy that measures the newest rows only, or without an eviction stage.
struct Ems {
  static constexpr Descriptor about{"ems", Stage::merge, "arXiv:2412.08521"};
  static constexpr Inputs needs = Input::attention | Input::queries;

  index_t window = 32;
  double folds = 2.0;
  float least = 0.6f;
  Mass mass = Mass::log_count;
  Place place = Place::as_cached;
  RopeConfig rope{};

  constexpr auto pipeline() const {
    return Pipeline{evict::GlobalLocalMass{window},
                    NearestKept{.values = true, .per_target = folds},
                    Least{least},
                    Weighted{MergeKernel::score, MergeNormaliser::sum},
                    Target::keys_and_values, prim::RowSplit::direction, mass, place, rope};
  }
  Status validate(const CacheShape& shape) const {
    if (window < 1 || !(folds >= 0.0 && folds <= 1e6) || !(least >= 0.0f && least <= 1.0f)) return Status::invalid_argument;
    return check_place(place, rope, shape);
  }
};

static_assert(check_merge_policy<Ems, Cpu>());

}  // namespace kvcondense::merge
