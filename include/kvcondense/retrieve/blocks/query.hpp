#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Query transform: every query head as it is.
struct EachQuery {
  constexpr index_t rows(index_t group) const { return group; }

  template <Backend B>
  void run(const ReadView<B>& view, index_t token, index_t head, index_t row, float* out) const {
    std::copy_n(view.query(token, head * view.shape.group() + row), view.shape.head_dim, out);
  }
};

/// Query transform: none, for summaries that know beforehand what they score. One row per KV head, of no numbers.
struct NoQuery {
  constexpr index_t rows(index_t) const { return 1; }
  constexpr index_t floats(index_t) const { return 0; }

  template <Backend B>
  void run(const ReadView<B>&, index_t, index_t, index_t, float*) const {}
};

/// Query transform: the mean of the query heads of a KV head. A mean of inner products is the inner product of means.
struct GroupMeanQuery {
  constexpr index_t rows(index_t) const { return 1; }

  template <Backend B>
  void run(const ReadView<B>& view, index_t token, index_t head, index_t, float* out) const {
    const index_t group = view.shape.group(), dim = view.shape.head_dim;
    std::fill_n(out, dim, 0.0f);
    for (index_t g = 0; g < group; ++g) {
      const float* q = view.query(token, head * group + g);
      for (index_t d = 0; d < dim; ++d) out[d] += q[d];
    }
    for (index_t d = 0; d < dim; ++d) out[d] /= static_cast<float>(group);
  }
};

/// Query transform: every query head as if it stood `distance` behind all keys, which are raw: a score without positions.
struct FarQuery {
  index_t distance = 2048;

  constexpr index_t rows(index_t group) const { return group; }

  template <Backend B>
  void run(const ReadView<B>& view, index_t token, index_t head, index_t row, float* out) const {
    EachQuery{}.run(view, token, head, row, out);
    if (view.rope != nullptr) view.rope->rotate(out, distance);
  }
};

}  // namespace kvcondense::retrieve
