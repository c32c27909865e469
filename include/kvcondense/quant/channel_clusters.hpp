#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/cluster_rows.hpp>

namespace kvcondense::quant {

/// Finds groups of channels with like smallest and largest numbers, of whatever sizes: k-means over (min, max).
///
/// Source   SKVQ, arXiv:2405.06219.
/// Shapes   rows [tokens, channels] of one head; cluster [channels]: numbers of groups, in order of their first channels. There
///          are `groups`, or fewer where channels coincide.
/// Numbers  double; starts from the channels at the quantiles of their range; at most 100 rounds. Numbers that are none are
///          left out.
/// Errors   invalid_argument unless 1 <= groups <= 32 and there are 1 to `max_head_dim` channels; shape_mismatch.
inline Status cluster_channels(TensorView<const float, 2> rows, index_t groups, std::span<float> cluster) {
  const index_t tokens = rows.extent[0], dim = rows.extent[1];
  if (groups < 1 || groups > prim::ClusterRows::most_groups || dim < 1 || dim > max_head_dim) return Status::invalid_argument;
  if (static_cast<index_t>(cluster.size()) != dim) return Status::shape_mismatch;
  double lo[max_head_dim], hi[max_head_dim], center[2][prim::ClusterRows::most_groups];
  for (index_t c = 0; c < dim; ++c) {
    bool seen = false;
    lo[c] = hi[c] = 0.0;
    for (index_t t = 0; t < tokens; ++t) {
      const auto x = static_cast<double>(rows(t, c));
      if (!std::isfinite(x)) continue;
      lo[c] = seen ? std::min(lo[c], x) : x;
      hi[c] = seen ? std::max(hi[c], x) : x;
      seen = true;
    }
  }
  std::int32_t order[max_head_dim], group[max_head_dim];
  std::iota(order, order + dim, 0);
  std::sort(order, order + dim, [&](std::int32_t a, std::int32_t b) {
    return hi[a] - lo[a] != hi[b] - lo[b] ? hi[a] - lo[a] < hi[b] - lo[b] : a < b;
  });
  groups = std::min(groups, dim);
  for (index_t g = 0; g < groups; ++g) {
    const std::int32_t c = order[(2 * g + 1) * dim / (2 * groups)];
    center[0][g] = lo[c], center[1][g] = hi[c];
  }
  std::fill_n(group, dim, -1);
  for (int round = 0; round < 100; ++round) {
    bool moved = false;
    for (index_t c = 0; c < dim; ++c) {
      std::int32_t best = 0;
      const auto far = [&](index_t g) { return std::pow(lo[c] - center[0][g], 2) + std::pow(hi[c] - center[1][g], 2); };
      for (std::int32_t g = 1; g < groups; ++g)
        if (far(g) < far(best)) best = g;
      moved = moved || best != group[c];
      group[c] = best;
    }
    if (!moved) break;
    for (index_t g = 0; g < groups; ++g) {
      double many = 0.0, sum[2] = {};
      for (index_t c = 0; c < dim; ++c)
        if (group[c] == g) many += 1.0, sum[0] += lo[c], sum[1] += hi[c];
      if (many > 0.0) center[0][g] = sum[0] / many, center[1][g] = sum[1] / many;
    }
  }
  // Numbers by first channel: none is left out.
  float name[prim::ClusterRows::most_groups];
  std::fill_n(name, groups, -1.0f);
  float next = 0.0f;
  for (index_t c = 0; c < dim; ++c) {
    if (name[group[c]] < 0.0f) name[group[c]] = next++;
    cluster[static_cast<std::size_t>(c)] = name[group[c]];
  }
  return Status::ok;
}

/// Groups channels by the order of their sums over all tokens: `group_size` of neighbouring sums each, the last maybe fewer.
///
/// Source   RotateKV, arXiv:2501.16383, whose rows are rotated before.
/// Shapes   rows [tokens, channels] of one head; cluster [channels].
/// Numbers  sums in double; of equal ones the smaller channel comes first. Numbers that are none are left out.
/// Errors   invalid_argument unless there are 1 to `max_head_dim` channels in at most 32 groups; shape_mismatch.
inline Status order_by_sums(TensorView<const float, 2> rows, index_t group_size, std::span<float> cluster) {
  const index_t dim = rows.extent[1];
  if (dim < 1 || dim > max_head_dim || group_size < 1) return Status::invalid_argument;
  if ((dim + group_size - 1) / group_size > prim::ClusterRows::most_groups) return Status::invalid_argument;
  if (static_cast<index_t>(cluster.size()) != dim) return Status::shape_mismatch;
  double sum[max_head_dim] = {};
  for (index_t t = 0; t < rows.extent[0]; ++t)
    for (index_t c = 0; c < dim; ++c)
      if (std::isfinite(rows(t, c))) sum[c] += static_cast<double>(rows(t, c));
  std::int32_t order[max_head_dim];
  std::iota(order, order + dim, 0);
  std::sort(order, order + dim, [&](std::int32_t a, std::int32_t b) { return sum[a] != sum[b] ? sum[a] < sum[b] : a < b; });
  for (index_t i = 0; i < dim; ++i) cluster[static_cast<std::size_t>(order[i])] = static_cast<float>(i / group_size);
  return Status::ok;
}

}  // namespace kvcondense::quant
