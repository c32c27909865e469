#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/merge/blocks/nearest_kept.hpp>
#include <kvcondense/merge/blocks/thresholds.hpp>
#include <kvcondense/merge/blocks/weights.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Spreads the value of a token that leaves over the next kept ones, the likelier the more attention it drew.
///
/// Idea     what a token would still have added to outputs comes from its neighbours instead; keys stay untouched, so no
///          logit is wrong.
/// Source   CaM, ICML 2024 (OpenReview LCTmppB165), and its code for streams.
/// Needs    attention of every query row; an eviction stage.
/// Shapes   decisions per KV head.
/// Cost     `targets` values written per token that leaves; 4 bytes per slot for the sum of attention.
/// Numbers  probability min(1, attention / mean attention of the targets), sums over all rows, mean of the group. Each
///          target gets 1 / targets of the value; near the newest slot there are fewer, and each gets more of it. Sums
///          grow: nothing divides them. The same seed gives the same tokens, on every backend.
/// Differs  whatever leaves may be spread; the code spreads only the token before the newest ones. Coded slots are no
///          targets.
/// Errors   invalid_argument when targets is not in [1, 256] or seed < 0; incompatible beside a policy that measures the
///          newest rows only, or without an eviction stage.
struct CaM {
  static constexpr Descriptor about{"cam", Stage::merge, "OpenReview LCTmppB165"};
  static constexpr Inputs needs = Input::attention;

  index_t targets = 32;
  index_t seed = 0;
  Mass mass = Mass::none;

  constexpr auto pipeline() const {
    using namespace evict;
    return Pipeline{AttentionMass<PerHead, RunningSum>{all_rows(), Reduce::sum, {Reduce::mean}, {}},
                    NextKept{targets},
                    Chance{static_cast<std::uint64_t>(seed)},
                    Weighted{MergeKernel::spread, MergeNormaliser::none},
                    Target::values, prim::RowSplit::none, mass, Place::as_cached, RopeConfig{}};
  }
  Status validate(const CacheShape&) const {
    return targets >= 1 && targets <= 256 && seed >= 0 ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_merge_policy<CaM, Cpu>());

}  // namespace kvcondense::merge
