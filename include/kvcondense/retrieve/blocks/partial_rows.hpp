#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/top_k.hpp>
#include <kvcondense/retrieve/blocks/largest_first.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Summary: some coordinates of every key in an orthogonal basis per layer and KV head, in the cache's dtype. Which ones: the
/// first `columns`, or, with `choose`, those with the largest sum of magnitudes over the queries of the first prompt, every query head weighing alike.
struct PartialRows {
  LayerMatrices basis{};  ///< [kv_heads * head_dim, columns or more]: row a of a head holds channel a in every direction
  index_t columns = 32;
  bool choose = false;

  constexpr index_t taken(const CacheShape&) const { return std::min(columns, basis.columns); }
  constexpr index_t size() const { return 1; }
  std::size_t plane_bytes(const CacheShape& shape, int plane) const {
    return plane == 0 ? static_cast<std::size_t>(taken(shape)) * size_of(shape.dtype) : 0;
  }
  std::size_t read_bytes(const CacheShape& shape, index_t n) const { return static_cast<std::size_t>(n) * plane_bytes(shape, 0); }
  constexpr index_t width(const CacheShape& shape) const { return taken(shape); }

  index_t found_floats(const CacheShape& shape, index_t) const { return choose ? taken(shape) : 0; }
  bool fits(const CacheShape& shape, index_t floats) const { return floats == found_floats(shape, 0); }
  std::int64_t fingerprint() const { return std::min(columns, basis.columns); }
  constexpr bool fit_queries() const { return choose; }
  std::size_t fit_bytes(const CacheShape&, index_t) const { return 0; }
  template <Backend B>
  void fit(const HeadRows<B>& rows, const PromptQueries& queries, UnitState& state, const Scratch&) const {
    if (!choose || queries.size() < 1) return;
    const CacheShape& shape = *rows.shape;
    double weight[max_head_dim] = {};
    float q[max_head_dim];
    for (index_t g = 0; g < shape.group(); ++g) {
      double own[max_head_dim] = {}, sum = 0.0;
      for (index_t t = 0; t < queries.size(); ++t) {
        queries.read(rows.at.head * shape.group() + g, t, q);
        for (index_t c = 0; c < basis.columns; ++c)
          own[c] += std::fabs(static_cast<double>(coordinate(shape, rows.at, q, c)));
      }
      for (index_t c = 0; c < basis.columns; ++c) sum += own[c];
      for (index_t c = 0; c < basis.columns && sum > 0.0; ++c) weight[c] += own[c] / sum;  // heads of long queries weigh no more
    }
    state.found.shrink(0);
    take_largest(weight, basis.columns, taken(shape), [&](index_t best) { state.found.append_reserved(static_cast<float>(best)); });
  }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t, index_t first, index_t last, UnitState& state) const {
    constexpr index_t tile = 16;
    const CacheShape& shape = *rows.shape;
    const index_t dim = shape.head_dim, n = taken(shape);
    float keys[tile * max_head_dim], part[max_head_dim];
    for (index_t i = first; i < last; i += tile) {
      const index_t m = std::min(tile, last - i);
      rows.keys->read(rows.at.head, i, {keys, m, dim});
      for (index_t k = 0; k < m; ++k) {
        for (index_t c = 0; c < n; ++c) part[c] = coordinate(shape, rows.at, keys + k * dim, column(state, c));
        prim::PageCodec<B, prim::ExactRows>::encode({shape.dtype}, span(shape, state), i + k, 1, {part, 1, n});
      }
    }
  }
  template <Backend B>
  void prepare(const ReadView<B>& view, index_t head, const float* query, float* out) const {
    const HeadIndex at{view.layer, head};  // by name: nvcc loses braces in an argument here
    for (index_t c = 0; c < taken(view.shape); ++c) out[c] = coordinate(view.shape, at, query, column(view.state[head], c));
  }
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> queries,
             prim::RowBlock<float> out) const {
    prim::PageCodec<B, prim::ExactRows>::scores({view.shape.dtype}, span(view.shape, view.state[head]), first, count, queries, out);
  }

 private:
  index_t column(const UnitState& state, index_t i) const {
    return choose && i < state.found.size() ? static_cast<index_t>(std::clamp(state.found[i], 0.0f, static_cast<float>(basis.columns - 1))) : i;
  }
  float coordinate(const CacheShape& shape, HeadIndex at, const float* row, index_t c) const {
    const float* e = basis(at.layer) + at.head * shape.head_dim * basis.columns + c;
    float sum = 0.0f;
    for (index_t d = 0; d < shape.head_dim; ++d) sum += row[d] * e[d * basis.columns];
    return sum;
  }
  prim::PageSpan span(const CacheShape& shape, const UnitState& state) const {
    const auto bytes = static_cast<index_t>(plane_bytes(shape, 0));
    return {const_cast<std::byte*>(state.plane[0].data()), state.plane[0].size() / bytes, taken(shape)};
  }
};

/// Whether a matrix per layer has head_dim rows for every KV head, at least one column and at most head_dim.
constexpr bool basis_fits(const LayerMatrices& m, const CacheShape& shape) {
  return m.layers == shape.layers && m.rows == shape.kv_heads * shape.head_dim && m.columns >= 1 && m.columns <= shape.head_dim;
}

/// Selector: slots within `alpha` of a row's best score are counted; every row of the layer gets the mean of those numbers,
/// rounded down, at most the part `share` of its slots.
struct WithinAlpha {
  double alpha = 4.0;  ///< in logits
  double share = 0.2;

  template <Backend B>
  constexpr index_t budget(const ReadView<B>& view, index_t head) const {
    return static_cast<index_t>(share * static_cast<double>(view.slots[head]) + 1e-9);
  }
  template <Backend B>
  constexpr bool takes_all(const ReadView<B>&, index_t, index_t) const {
    return false;
  }
  std::size_t workspace_bytes(const CacheShape& shape, index_t, index_t) const {
    return Scratch::bytes_for<index_t>(shape.q_heads);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>& view, RaggedView<const float> scores, const UnitLists& lists, Scratch& scratch) const {
    auto* total = scratch.take<index_t>(scores.heads);
    if (total == nullptr) return Status::workspace_too_small;
    const auto margin = static_cast<float>(alpha) / view.shape.softmax_scale;
    ctx.parallel(scores.heads, [&](index_t r, index_t) {
      const float* x = scores.row(r);
      float top = -std::numeric_limits<float>::infinity();
      total[r] = 0;
      for (index_t i = 0; i < scores.length(r); ++i) top = x[i] > top ? x[i] : top;
      for (index_t i = 0; i < scores.length(r); ++i) total[r] += x[i] > top - margin;
    });
    index_t sum = 0;
    for (index_t r = 0; r < scores.heads; ++r) sum += total[r];
    for (index_t r = 0; r < scores.heads; ++r)
      total[r] = std::min(sum / scores.heads, budget(view, r * view.heads() / scores.heads));
    return prim::TopK<B>::run(ctx, scores, nullptr, total, lists.units, lists.count);
  }
};

}  // namespace kvcondense::retrieve
