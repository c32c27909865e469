#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/merge/blocks/sets.hpp>
#include <kvcondense/merge/blocks/thresholds.hpp>
#include <kvcondense/merge/blocks/weights.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Folds runs of neighbours whose keys are alike into the one that drew most attention.
///
/// Idea     keys of neighbouring tokens are nearly parallel for long stretches; such a stretch is one slot.
/// Source   KVMerger, arXiv:2407.08454. What of it is not published is set here: the width of the Gaussian, the meaning
///          of the protected parts, what happens while text is generated.
/// Needs    attention of every query row; no eviction stage. With one, only what stays is looked at.
/// Shapes   decisions per KV head; one number of state per KV head.
/// Cost     one read of the keys when a prompt ends, and per `window` tokens then; 4 bytes per slot for the sum of
///          attention, and what mass and place take.
/// Numbers  neighbours join above `least`, or the most alike ones until `keep` of the slots are left. Weights
///          exp(-distance^2 / (2 sigma^2)) to the key with most attention, divided by their sum; sigma 0: the mean
///          distance of the set, the slot itself included, / sqrt(2). Keys turn to that slot's position before they are summed; with raw keys they
///          need not.
/// Differs  what was looked at once is never joined again. The first tokens stay as they are. No layer is left out:
///          the paper leaves three.
/// Errors   invalid_argument when a part is outside [0, 1], window < 1, sinks or sigma < 0, or the RoPE does not fit;
///          incompatible beside a policy that measures the newest rows only.
struct KVMerger {
  static constexpr Descriptor about{"kvmerger", Stage::merge, "arXiv:2407.08454"};
  static constexpr Inputs needs = Input::attention;

  float least = 0.75f;
  double keep = 0.0;
  float sigma = 0.0f;
  double heavy = 0.12;
  double recent = 0.17;
  index_t window = 64;
  index_t sinks = 4;
  Mass mass = Mass::log_count;
  Place place = Place::pivot;
  RopeConfig rope{};

  constexpr auto pipeline() const {
    using namespace evict;
    return Pipeline{AttentionMass<PerHead, RunningSum>{all_rows(), Reduce::sum, {Reduce::sum}, {}},
                    Runs{least, keep, heavy, recent, window, sinks},
                    EveryLink{},
                    Gaussian{sigma},
                    Target::keys_and_values, prim::RowSplit::none, mass, place, rope};
  }
  Status validate(const CacheShape& shape) const {
    const auto part = [](double x) { return x >= 0.0 && x <= 1.0; };
    if (!part(keep) || !part(heavy) || !part(recent) || !(least >= -1.0f && least <= 1.0f) || window < 1 || sinks < 0 || !(sigma >= 0.0f))
      return Status::invalid_argument;
    return check_place(place, rope, shape);
  }
};

static_assert(check_merge_policy<KVMerger, Cpu>());

}  // namespace kvcondense::merge
