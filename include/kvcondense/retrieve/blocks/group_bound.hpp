#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/retrieve/blocks/channels.hpp>
#include <kvcondense/retrieve/blocks/largest_first.hpp>
#include <kvcondense/retrieve/blocks/unit_rows.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Query transform: the channels on which a group's queries are largest in the mean, over the head's temperature; first what
/// meets a page's largest numbers (channels in which the group's sum is positive), then what meets its smallest.
struct GroupChannels {
  index_t channels = 32;

  constexpr index_t rows(index_t group) const { return group; }
  constexpr index_t floats(index_t dim) const { return 2 * dim; }

  template <Backend B>
  void run(const ReadView<B>& view, index_t token, index_t head, index_t row, float* out) const {
    const index_t dim = view.shape.head_dim, group = view.shape.group();
    float size[max_head_dim], sum[max_head_dim];
    std::fill_n(size, dim, 0.0f), std::fill_n(sum, dim, 0.0f);
    for (index_t g = 0; g < group; ++g) {
      const float* q = view.query(token, head * group + g);
      for (index_t d = 0; d < dim; ++d) size[d] += std::fabs(q[d]), sum[d] += q[d];
    }
    const float* q = view.query(token, head * group + row);
    double kept = 0.0, all = 0.0;
    for (index_t d = 0; d < dim; ++d) all += static_cast<double>(std::fabs(q[d]));
    std::fill_n(out, 2 * dim, 0.0f);
    take_largest(size, dim, channels, [&](index_t best) {
      out[sum[best] > 0.0f ? best : dim + best] = q[best];
      kept += static_cast<double>(std::fabs(q[best]));
    });
    const double temperature = all > 0.0 && kept > 0.0 ? std::sqrt(static_cast<double>(dim) * kept / all) : 1.0;
    for (index_t d = 0; d < 2 * dim; ++d) out[d] = static_cast<float>(static_cast<double>(out[d]) / temperature);
  }
};

/// Summary: as MinMax, for queries that say themselves which part meets which bound.
struct GroupMinMax : MinMax {
  template <Backend B>
  void prepare(const ReadView<B>& view, index_t, const float* query, float* out) const {
    std::copy_n(query, 2 * view.shape.head_dim, out);
  }
};

}  // namespace kvcondense::retrieve
