#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/channel_list.hpp>
#include <kvcondense/prim/channel_scale.hpp>
#include <kvcondense/prim/found_basis.hpp>
#include <kvcondense/prim/symmetric_eigen.hpp>

// What observed sums become when all rows are in: once per head, so hosts do it for a device too.

namespace kvcondense::prim {

/// state: sums of products [dim][dim], of numbers [dim], and how many rows; behind it directions, and the mean where rows are centred.
inline void settle_basis(const FoundBasis& t, index_t dim, float* state) {
  float value[max_head_dim], mean[max_head_dim];
  const float count = std::max(state[dim * dim + dim], 1.0f);
  for (index_t i = 0; i < dim; ++i) mean[i] = state[dim * dim + i] / count;
  for (index_t i = 0; i < dim; ++i)
    for (index_t j = 0; j < dim; ++j) {
      float& c = state[i * dim + j];
      c = c / count - (t.center ? mean[i] * mean[j] : 0.0f);
    }
  symmetric_eigen(state, dim, value, state + dim * dim);
  if (t.center) std::copy_n(mean, dim, state + t.rank * dim);
}

/// state: energies of the channels in rows [dim] and in queries [dim]; behind it a bit per channel.
inline void settle_channels(const ChannelList& t, index_t dim, float* state) {
  float* score = state + dim;
  for (index_t c = 0; c < dim; ++c) {
    const float both = score[c] * state[c];  // infinite where it is too large, no number where one factor is
    score[c] = both <= 3e38f ? both : both != both ? 0.0f : 3e38f;
  }
  const auto one = [&](index_t pair) { return t.interleaved ? 2 * pair : pair; };
  const auto other = [&](index_t pair) { return t.interleaved ? 2 * pair + 1 : pair + dim / 2; };
  std::int32_t order[max_head_dim];
  const index_t units = t.pairs ? dim / 2 : dim;
  if (t.pairs)
    for (index_t p = 0; p < units; ++p) state[p] = score[one(p)] + score[other(p)];
  else std::copy_n(score, dim, state);
  for (index_t u = 0; u < units; ++u) order[u] = static_cast<std::int32_t>(u);
  const index_t keep = t.pairs ? t.kept / 2 : t.kept;
  std::partial_sort(order, order + keep, order + units, [&](std::int32_t a, std::int32_t b) {
    return state[a] != state[b] ? state[a] > state[b] : a < b;
  });
  std::uint32_t bits[ChannelList::words(max_head_dim)] = {};
  const auto set = [&](index_t c) { bits[c / 32] |= std::uint32_t{1} << (c % 32); };
  for (index_t k = 0; k < keep; ++k) {
    if (t.pairs) set(one(order[k])), set(other(order[k]));
    else set(order[k]);
  }
  std::memcpy(state, bits, static_cast<std::size_t>(ChannelList::words(dim)) * sizeof *bits);
}

/// state: the largest numbers of the channels in rows [dim] and, where the rule asks, in `asked` query rows [dim]; behind it factors, then their inverses.
inline void settle_scales(const ChannelScale& t, index_t dim, index_t asked, float* state) {
  constexpr float most = ChannelScale::most;
  const bool balances = t.rule == ChannelScale::Rule::balance;
  if (balances && asked < t.least_queries) std::fill_n(state + dim, dim, *std::max_element(state + dim, state + 2 * dim));
  for (index_t c = 0; c < dim; ++c) {
    const float square = (balances ? state[dim + c] : 1.0f) / state[c];
    const bool usual = square > 0.0f && square <= 3e38f;
    const float power = balances || t.alpha == 0.5f ? std::sqrt(square) : std::pow(square, t.alpha);
    state[c] = usual ? std::clamp(power, 1.0f / most, most) : 1.0f;
    state[dim + c] = 1.0f / state[c];
  }
}

}  // namespace kvcondense::prim
