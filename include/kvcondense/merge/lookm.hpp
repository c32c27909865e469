#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/merge/blocks/nearest_kept.hpp>
#include <kvcondense/merge/blocks/thresholds.hpp>
#include <kvcondense/merge/blocks/weights.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Folds what leaves into the kept token whose key is most like its own, by one of three means.
///
/// Idea     in contexts of text and images most image tokens repeat others; a mean keeps what they share.
/// Source   LOOK-M, arXiv:2406.18139, and its code; `shared` is the form of KVCache-Factory.
/// Needs    an eviction stage. The paper's keeps text before images; no policy here tells them apart.
/// Shapes   decisions per KV head; no state.
/// Cost     one product per token that leaves and token that stays.
/// Numbers  with x kept and n tokens y that join it: average (x + sum y) / (1 + n); pivotal the middle of x and y instead
///          of y; weighted y times its cosine; shared y times (cosine + 1) / 2, divided by 1 + the sum of these.
/// Differs  the filter is applied to tokens and targets alike, where the published average applies it to one of them.
/// Errors   invalid_argument when the RoPE does not fit; incompatible without an eviction stage.
struct LookM {
  enum class Kernel : std::uint8_t { average, pivotal, weighted, shared };

  static constexpr Descriptor about{"lookm", Stage::merge, "arXiv:2406.18139"};
  static constexpr Inputs needs{};

  Kernel kernel = Kernel::pivotal;
  bool alike_only = false;  ///< only tokens at least as like their target as all are in the mean
  Mass mass = Mass::none;
  Place place = Place::as_cached;
  RopeConfig rope{};

  constexpr auto pipeline() const {
    return Pipeline{evict::NoScore{}, NearestKept{}, MeanLink{alike_only}, weights(),
                    Target::keys_and_values, prim::RowSplit::none, mass, place, rope};
  }
  Status validate(const CacheShape& shape) const { return check_place(place, rope, shape); }

 private:
  constexpr Weighted weights() const {
    switch (kernel) {
      case Kernel::average: return {MergeKernel::uniform, MergeNormaliser::members};
      case Kernel::pivotal: return {MergeKernel::middle, MergeNormaliser::members};
      case Kernel::weighted: return {MergeKernel::likeness, MergeNormaliser::members};
      case Kernel::shared: break;
    }
    return {MergeKernel::half_likeness, MergeNormaliser::sum};
  }
};

static_assert(check_merge_policy<LookM, Cpu>());

}  // namespace kvcondense::merge
