#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/merge/blocks/sets.hpp>
#include <kvcondense/merge/blocks/thresholds.hpp>
#include <kvcondense/merge/blocks/weights.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Folds the most alike pairs inside chunks of neighbours, weighing each slot by the tokens it stands for.
///
/// Idea     what is alike lies close together: matching inside chunks costs the length of a chunk per slot, not that of
///          the context.
/// Source   CentroidKV (first called Chelsea), arXiv:2506.11418, of which partition and pairs are not published: they are
///          this library's.
/// Needs    keys only; no eviction stage. With one, only what stays is looked at.
/// Shapes   decisions per KV head; no state.
/// Cost     slots * chunk / 4 products of rows in a step that is over budget.
/// Numbers  as `tome`, in every chunk of `chunk` slots the same number of pairs, so that a head may end some below its
///          budget; the slot keeps the later position.
/// Differs  rounds come in the steps that follow: each halves what it looks at, at most.
/// Errors   invalid_argument when tokens <= sinks + recent, chunk < 2 or above 2^31, a field is negative, or the RoPE does
///          not fit.
struct Centroid {
  static constexpr Descriptor about{"centroid", Stage::merge, "arXiv:2506.11418"};
  static constexpr Inputs needs{};

  index_t tokens = 1024;
  index_t chunk = 64;
  index_t slack = 64;
  index_t sinks = 4;
  index_t recent = 64;
  Mass mass = Mass::log_count;
  Place place = Place::as_cached;
  RopeConfig rope{};

  constexpr auto pipeline() const {
    return Pipeline{evict::NoScore{}, Pairs{tokens, slack, sinks, recent, chunk}, EveryLink{},
                    Weighted{MergeKernel::size, MergeNormaliser::sum},
                    Target::keys_and_values, prim::RowSplit::none, mass, place, rope};
  }
  Status validate(const CacheShape& shape) const {
    const bool good = sinks >= 0 && recent >= 0 && slack >= 0 && chunk >= 2 && chunk <= index_t{1} << 31 && tokens > sinks &&
                      tokens - sinks > recent;
    if (!good) return Status::invalid_argument;
    return check_place(place, rope, shape);
  }
};

static_assert(check_merge_policy<Centroid, Cpu>());

}  // namespace kvcondense::merge
