#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/cluster_rows.hpp>
#include <kvcondense/prim/hadamard.hpp>
#include <kvcondense/prim/row_transform.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Rotates keys and values, groups the rotated channels that are alike, and stores them in 2 bits with clipped ranges; the first
/// tokens stay exact.
///
/// Idea     a rotation takes the edge off outlier channels; what differs between rotated channels still, an order by size
///          gathers in groups; tokens that hold massive activations are the first ones, and are kept.
/// Source   RotateKV, arXiv:2501.16383.
/// Needs    keys and values only. The paper codes keys before RoPE: `rotatekv + rerotate`. `key_clusters`, `value_clusters`: the
///          group of every rotated channel, as `order_by_sums` finds them; without them neighbours are a group.
/// Shapes   per token and head: Hadamard over the head, then ClusterRows in the form of an integer zero.
/// Cost     2 + 32 / group_size bits per number (2.25 for groups of 128); a rotation per new slot, query head and output.
/// Numbers  half to even, scales and zeros in fp16; errors within a clipped range are a step at most.
/// Differs  the paper rotates four heads together, in the model's weights; here a head is rotated by itself when it is stored.
///          Its pivot tokens are those of massive activations, ours the first `sinks`. Levels are 2^bits (the reference code
///          takes bits^2).
/// Errors   invalid_argument for bits other than 1 to 4, a clip outside 0 to 1, negative windows or sinks, and clusters that do
///          not fit the cache, are no whole numbers below 32, or leave one out.
struct RotateKv {
  static constexpr Descriptor about{"rotatekv", Stage::quant, "arXiv:2501.16383"};

  int bits = 2;
  float clip = 0.8f;         ///< part of a range that stays
  index_t group_size = 128;
  std::uint64_t seed = 0;    ///< of random signs; 0: none
  index_t residual_window = 0;
  index_t sinks = 20;        ///< slots at the start that stay exact
  HeadRows key_clusters{};
  HeadRows value_clusters{};

  constexpr auto key_codec(const CacheShape& shape, HeadIndex at) const { return codec(key_clusters, shape.head_dim, at); }
  auto value_codec(const CacheShape& shape, HeadIndex at) const { return codec(value_clusters, shape.values(), at); }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }
  constexpr bool differs_per_head() const { return !key_clusters.empty() || !value_clusters.empty(); }

  Status validate(const CacheShape& shape) const {
    if (!key_clusters.empty() && !key_clusters.fits(shape, shape.head_dim)) return Status::invalid_argument;
    if (!value_clusters.empty() && !value_clusters.fits(shape, shape.values())) return Status::invalid_argument;
    const bool sane = bits >= 1 && bits <= 4 && group_size >= 1 && group_size <= max_head_dim && residual_window >= 0;
    return sane && codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr prim::Transformed<prim::Hadamard, prim::ClusterRows> codec(const HeadRows& clusters, index_t dim, HeadIndex at) const {
    const int sane = bits < 1 || bits > 4 ? 1 : bits;  // `validate` refuses the others
    return {{0, seed, true},
            {.levels = 1 << sane, .clip = clip, .form = prim::GroupForm::integer_zero,
             .group_size = static_cast<std::int32_t>(group_size), .cluster = clusters.row(at),
             .channels = static_cast<std::int32_t>(dim)}};
  }
};

}  // namespace kvcondense::quant
