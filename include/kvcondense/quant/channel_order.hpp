#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::quant {

/// What an order of channels must respect.
struct ChannelOrderRules {
  index_t rotary_dim = 0;  ///< leading channels that RoPE turns; 0: none, keys are not turned
  prim::RopePairing pairing = prim::RopePairing::half_split;
  bool shared = false;     ///< one order for all heads, by the norms of all: one table of angles then does
};

namespace detail {

/// First and second channel of rotation pair t.
constexpr index_t pair_channel(const ChannelOrderRules& rules, index_t t, bool second) {
  if (rules.pairing == prim::RopePairing::interleaved) return 2 * t + (second ? 1 : 0);
  return t + (second ? rules.rotary_dim / 2 : 0);
}

}  // namespace detail

/// Finds the order of channels, per KV head, in which the rows of the key projection have falling norms (K-sort).
///
/// Source   Accurate Block Quantization in LLMs with Outliers, arXiv:2403.20137.
/// Shapes   weights [kv_heads * head_dim, inputs]; order [kv_heads, head_dim]: channel i of the new head h is
///          channel order(h, i) of the old one. Channels that turn together stay a pair, by the norm of both,
///          and stay among the first `rotary_dim`; the others are ordered among themselves, behind them.
/// Numbers  sums of squares in double; of equal norms the smaller channel comes first. A norm that is not
///          finite comes first.
/// Errors   shape_mismatch when the views disagree, invalid_argument for a head beyond `max_head_dim` or a
///          rotary_dim that is odd, negative or larger than a head. Nothing is written then.
inline Status order_channels(TensorView<const float, 2> weights, const ChannelOrderRules& rules,
                             TensorView<std::int32_t, 2> order) {
  const index_t heads = order.extent[0], dim = order.extent[1], rotary = rules.rotary_dim;
  if (dim < 1 || dim > max_head_dim || rotary < 0 || rotary > dim || rotary % 2 != 0) return Status::invalid_argument;
  if (heads < 1 || weights.extent[0] != heads * dim) return Status::shape_mismatch;
  double squares[max_head_dim];
  const auto add_head = [&](index_t h) {
    for (index_t c = 0; c < dim; ++c)
      for (index_t i = 0; i < weights.extent[1]; ++i) {
        const auto w = static_cast<double>(weights(h * dim + c, i));
        squares[c] += w * w;
      }
  };
  // Units are pairs, then the channels that do not turn; both sorted apart.
  const auto sort_head = [&](index_t h) {
    const index_t pairs = rotary / 2;
    double norm[max_head_dim];
    std::int32_t unit[max_head_dim];
    for (index_t t = 0; t < pairs; ++t)
      norm[t] = squares[detail::pair_channel(rules, t, false)] + squares[detail::pair_channel(rules, t, true)];
    for (index_t c = rotary; c < dim; ++c) norm[c - pairs] = squares[c];
    const index_t units = dim - pairs;
    for (index_t u = 0; u < units; ++u) {
      unit[u] = static_cast<std::int32_t>(u);
      if (!std::isfinite(norm[u])) norm[u] = HUGE_VAL;
    }
    const auto before = [&](std::int32_t a, std::int32_t b) { return norm[a] != norm[b] ? norm[a] > norm[b] : a < b; };
    std::sort(unit, unit + pairs, before);
    std::sort(unit + pairs, unit + units, before);
    for (index_t t = 0; t < pairs; ++t)
      for (const bool second : {false, true})
        order(h, detail::pair_channel(rules, t, second)) =
            static_cast<std::int32_t>(detail::pair_channel(rules, unit[t], second));
    for (index_t u = pairs; u < units; ++u) order(h, u + pairs) = static_cast<std::int32_t>(unit[u] + pairs);
  };
  std::fill_n(squares, dim, 0.0);
  for (index_t h = 0; rules.shared && h < heads; ++h) add_head(h);
  for (index_t h = 0; h < heads; ++h) {
    if (!rules.shared) std::fill_n(squares, dim, 0.0), add_head(h);
    sort_head(h);
  }
  return Status::ok;
}

/// Copies a projection with its rows in a new order: of keys, or of queries with the orders of the KV heads they read.
///
/// Shapes   weights and out [heads * head_dim, inputs], two buffers; order [kv_heads, head_dim]; heads is a
///          multiple of kv_heads: head h follows order h / (heads / kv_heads). A bias is a matrix of one column.
/// Errors   shape_mismatch when the views disagree, invalid_argument for an order that names no channel.
///          Nothing is written then.
inline Status permute_rows(TensorView<const float, 2> weights, TensorView<const std::int32_t, 2> order,
                           TensorView<float, 2> out) {
  const index_t kv_heads = order.extent[0], dim = order.extent[1];
  const bool shaped = kv_heads > 0 && dim > 0 && weights.extent[0] % (kv_heads * dim) == 0 &&
                      weights.extent[0] == out.extent[0] && weights.extent[1] == out.extent[1];
  if (!shaped) return Status::shape_mismatch;
  for (index_t h = 0; h < kv_heads; ++h)
    for (index_t c = 0; c < dim; ++c)
      if (order(h, c) < 0 || order(h, c) >= dim) return Status::invalid_argument;
  const index_t group = weights.extent[0] / (kv_heads * dim);  // heads that share an order
  for (index_t row = 0; row < weights.extent[0]; ++row) {
    const index_t head = row / dim, from = head * dim + order(head / group, row % dim);
    for (index_t i = 0; i < weights.extent[1]; ++i) out(row, i) = weights(from, i);
  }
  return Status::ok;
}

/// Frequencies of the rotation pairs of one KV head in its new order: what turns its keys, and its queries.
///
/// Shapes   frequency and out: one per pair, `rotary_dim` / 2; `order` is the head's row of `order_channels`.
/// Errors   shape_mismatch when the numbers of pairs disagree, invalid_argument when the order tears a pair.
inline Status permute_angles(std::span<const float> frequency, const ChannelOrderRules& rules,
                             std::span<const std::int32_t> order, std::span<float> out) {
  const index_t pairs = rules.rotary_dim / 2, dim = static_cast<index_t>(order.size());
  const bool shaped = static_cast<index_t>(frequency.size()) == pairs && frequency.size() == out.size();
  if (!shaped || rules.rotary_dim > dim) return Status::shape_mismatch;
  const auto old = [&](index_t t, bool second) {
    return static_cast<index_t>(order[static_cast<std::size_t>(detail::pair_channel(rules, t, second))]);
  };
  const bool split = rules.pairing == prim::RopePairing::half_split;
  for (index_t t = 0; t < pairs; ++t) {
    const index_t first = old(t, false), far = split ? pairs : 1;
    const bool starts = split ? first >= 0 && first < pairs : first >= 0 && first < 2 * pairs && first % 2 == 0;
    if (!starts || old(t, true) != first + far) return Status::invalid_argument;
  }
  for (index_t t = 0; t < pairs; ++t)
    out[static_cast<std::size_t>(t)] = frequency[static_cast<std::size_t>(split ? old(t, false) : old(t, false) / 2)];
  return Status::ok;
}

}  // namespace kvcondense::quant
