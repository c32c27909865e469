#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/cluster_rows.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores keys and values in very few levels: channels of like range share a scale, ranges are clipped, newest tokens stay exact.
///
/// Idea     channels with like ranges waste no levels on each other; cutting a range a little short costs its ends less than
///          finer steps give the others; queries look at the newest tokens most.
/// Source   SKVQ, arXiv:2405.06219.
/// Needs    keys and values only. `key_clusters`, `value_clusters`: the group of every channel, as `cluster_channels` finds them;
///          without them `group_size` neighbours are a group.
/// Shapes   ClusterRows per token and head, groups within a head, 32 at most.
/// Cost     log2(levels) + 16 / group size bits per number (2.125 for 4 levels, groups of 128), 1.6 in the place of 2 for
///          3 levels in whole bytes; the exact window and sinks.
/// Numbers  minimum form, half to even, scales and minima in e4m3 by which numbers are coded; scales are rounded up.
/// Differs  groups lie within one head. The reference code rounds parameters after coding and keeps codes of 3 levels in two bits.
/// Errors   invalid_argument for other levels than 2, 3, 4, 8 and 16, a clip outside 0 to 1, negative windows or sinks, and
///          clusters that do not fit the cache, are no whole numbers below 32, or leave one out.
struct Skvq {
  static constexpr Descriptor about{"skvq", Stage::quant, "arXiv:2405.06219"};

  int key_levels = 4;
  int value_levels = 4;      ///< 3: "1.5 bits"
  float key_clip = 0.95f;    ///< part of a range that stays
  float value_clip = 0.95f;
  index_t group_size = 128;
  prim::ClusterParam params = prim::ClusterParam::e4m3;
  index_t window = 128;      ///< newest slots that stay exact
  index_t sinks = 5;         ///< slots at the start that stay exact
  HeadRows key_clusters{};
  HeadRows value_clusters{};

  constexpr prim::ClusterRows key_codec(const CacheShape& shape, HeadIndex at) const {
    return codec(key_levels, key_clip, key_clusters, shape.head_dim, at);
  }
  prim::ClusterRows value_codec(const CacheShape& shape, HeadIndex at) const {
    return codec(value_levels, value_clip, value_clusters, shape.values(), at);
  }
  constexpr Flush key_flush() const { return fifo_flush(window); }
  constexpr Flush value_flush() const { return fifo_flush(window); }
  constexpr bool differs_per_head() const { return !key_clusters.empty() || !value_clusters.empty(); }

  Status validate(const CacheShape& shape) const {
    if (!key_clusters.empty() && !key_clusters.fits(shape, shape.head_dim)) return Status::invalid_argument;
    if (!value_clusters.empty() && !value_clusters.fits(shape, shape.values())) return Status::invalid_argument;
    const bool sane = group_size >= 1 && group_size <= max_head_dim && window >= 0;
    return sane && codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr prim::ClusterRows codec(int levels, float clip, const HeadRows& clusters, index_t dim, HeadIndex at) const {
    return {.levels = levels, .clip = clip, .params = params, .group_size = static_cast<std::int32_t>(group_size),
            .cluster = clusters.row(at), .channels = static_cast<std::int32_t>(dim)};
  }
};

}  // namespace kvcondense::quant
