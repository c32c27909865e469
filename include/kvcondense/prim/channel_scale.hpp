#pragma once

#include <bit>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim {

/// A factor per channel before coding, found once, from the first rows that are coded: channels that are large
/// together get to share a scale with the small ones.
///
/// Source   root_max: ZipCache, arXiv:2405.14256, channel-separable quantization, and QServe's
///          SmoothAttention, arXiv:2405.04532; balance: MiKV, arXiv:2402.18096.
/// Shapes   state: the factors of all channels, then their inverses.
/// Numbers  float32. root_max: 1 / (max |x|)^alpha. balance: sqrt(max |q| / max |x|) over the query group and the step's
///          queries; of fewer than `least_queries` rows the largest number stands for every channel, since a channel that is
///          small in a few queries by chance would get a factor that makes its step wide for good. A factor whose maxima are
///          zero or no numbers is 1; all are cut to [2^-8, 2^8].
struct ChannelScale {
  static constexpr float most = 256.0f;  ///< no factor is larger, nor its inverse
  enum class Rule : std::uint8_t { none, root_max, balance };
  Rule rule = Rule::none;
  float alpha = 0.5f;          ///< of root_max
  index_t least_queries = 0;   ///< of balance: query rows, over the query group, that tell channels apart

  constexpr bool identity() const { return rule == Rule::none; }
  constexpr bool needs_queries() const { return rule == Rule::balance; }
  constexpr index_t stored_dim(index_t dim) const { return dim; }
  constexpr index_t state_floats(index_t dim) const { return identity() ? 0 : 2 * dim; }
  constexpr bool valid(index_t dim) const { return dim >= 1 && dim <= max_head_dim; }
  constexpr std::int64_t fingerprint() const {
    const auto power = static_cast<std::uint64_t>(std::bit_cast<std::uint32_t>(alpha) ^ std::bit_cast<std::uint32_t>(0.5f));
    const std::uint64_t fields = static_cast<std::uint64_t>(rule) + power * 0x1000000 + static_cast<std::uint64_t>(least_queries) * 0x100000001b3;
    return identity() ? 0 : static_cast<std::int64_t>(0x5ca1e0 + fields);
  }
  /// NaN and infinities count as nothing.
  KVCONDENSE_HD static float larger(float top, float x) {
    const float size = x < 0.0f ? -x : x;
    return size <= 3e38f && size > top ? size : top;
  }
};

static_assert(TransformDescription<ChannelScale>);

}  // namespace kvcondense::prim
