#pragma once

#include <algorithm>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/unit_fold.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Rows of the index in the cache's dtype, one per unit, read with inner products.
struct UnitRows {
  static prim::PageSpan span(const CacheShape& shape, const UnitState::Plane& plane) {
    const auto bytes = static_cast<index_t>(static_cast<std::size_t>(shape.head_dim) * size_of(shape.dtype));
    return {const_cast<std::byte*>(plane.data()), plane.size() / bytes, shape.head_dim};
  }
  /// Calls use(tile of keys, unit, whether the unit begins, whether it ends) for the slots of units [first, last).
  template <Backend B, class Use>
  static void each_unit(const HeadRows<B>& rows, index_t size, index_t origin, index_t first, index_t last, Use&& use) {
    constexpr index_t tile = 16;
    float keys[tile * max_head_dim];
    for (index_t u = first; u < last; ++u) {
      const index_t begin = origin + u * size, end = std::min(rows.slots, begin + size);
      for (index_t i = begin; i < end; i += tile) {
        const index_t n = std::min(tile, end - i);
        rows.keys->read(rows.at.head, i, {keys, n, rows.shape->head_dim});
        use(prim::RowBlock<const float>{keys, n, rows.shape->head_dim}, u, i == begin, i + n == end);
      }
    }
  }
};

/// Summary: the largest and the smallest number of every channel, rounded outwards, so that a unit's score is never below
/// the inner product of the query with one of its keys.
struct MinMax {
  index_t slots = 16;

  constexpr index_t size() const { return slots; }
  std::size_t plane_bytes(const CacheShape& shape, int) const {
    return static_cast<std::size_t>(shape.head_dim) * size_of(shape.dtype);
  }
  std::size_t read_bytes(const CacheShape& shape, index_t n) const {
    return static_cast<std::size_t>((n + slots - 1) / slots) * 2 * plane_bytes(shape, 0);
  }
  /// Positive parts of the query, then negative ones.
  constexpr index_t width(const CacheShape& shape) const { return 2 * shape.head_dim; }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t origin, index_t first, index_t last, UnitState& state) const {
    const CacheShape& shape = *rows.shape;
    const index_t dim = shape.head_dim;
    const prim::ExactRows codec{shape.dtype};
    float top[max_head_dim], bottom[max_head_dim];
    UnitRows::each_unit(rows, slots, origin, first, last, [&](prim::RowBlock<const float> keys, index_t u, bool begins, bool ends) {
      if (begins) {
        std::fill_n(top, dim, -std::numeric_limits<float>::infinity());
        std::fill_n(bottom, dim, std::numeric_limits<float>::infinity());
      }
      prim::UnitFold<B>::largest(keys, dim, top);
      prim::UnitFold<B>::smallest(keys, dim, bottom);
      if (!ends) return;
      for (index_t d = 0; d < dim; ++d) {
        top[d] = prim::stored_above(shape.dtype, top[d]);
        bottom[d] = prim::stored_below(shape.dtype, bottom[d]);
      }
      prim::PageCodec<B, prim::ExactRows>::encode(codec, UnitRows::span(shape, state.plane[0]), u, 1, {top, 1, dim});
      prim::PageCodec<B, prim::ExactRows>::encode(codec, UnitRows::span(shape, state.plane[1]), u, 1, {bottom, 1, dim});
    });
  }

  template <Backend B>
  void prepare(const ReadView<B>& view, index_t, const float* query, float* out) const {
    const index_t dim = view.shape.head_dim;
    for (index_t d = 0; d < dim; ++d) {
      out[d] = query[d] > 0.0f ? query[d] : 0.0f;
      out[dim + d] = query[d] > 0.0f ? 0.0f : query[d];  // NaN stays
    }
  }
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> queries,
             prim::RowBlock<float> out) const {
    using Rows = prim::PageCodec<B, prim::ExactRows>;
    constexpr index_t strip = 256, most = 32;
    const index_t dim = view.shape.head_dim;
    const prim::ExactRows codec{view.shape.dtype};
    const UnitState& state = view.state[head];
    float low[strip * most];
    for (index_t r = 0; r < queries.rows; r += most) {
      const index_t rows = std::min(most, queries.rows - r);
      const prim::RowBlock<const float> up{queries.data + r * queries.step, rows, queries.step}, down{up.data + dim, rows, queries.step};
      for (index_t i = 0; i < count; i += strip) {
        const index_t n = std::min(strip, count - i);
        float* to = out.data + r * out.step + i;
        Rows::scores(codec, UnitRows::span(view.shape, state.plane[0]), first + i, n, up, {to, rows, out.step});
        Rows::scores(codec, UnitRows::span(view.shape, state.plane[1]), first + i, n, down, {low, rows, strip});
        for (index_t k = 0; k < rows; ++k)
          for (index_t j = 0; j < n; ++j) to[k * out.step + j] += low[k * strip + j];
      }
    }
  }
};

/// Summary: the mean key of a unit, scored by inner product.
struct MeanKey {
  index_t slots = 16;

  constexpr index_t size() const { return slots; }
  std::size_t plane_bytes(const CacheShape& shape, int plane) const {
    return plane == 0 ? static_cast<std::size_t>(shape.head_dim) * size_of(shape.dtype) : 0;
  }
  std::size_t read_bytes(const CacheShape& shape, index_t n) const {
    return static_cast<std::size_t>((n + slots - 1) / slots) * plane_bytes(shape, 0);
  }
  constexpr index_t width(const CacheShape& shape) const { return shape.head_dim; }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t origin, index_t first, index_t last, UnitState& state) const {
    const CacheShape& shape = *rows.shape;
    const index_t dim = shape.head_dim;
    float mean[max_head_dim];
    index_t n = 0;
    UnitRows::each_unit(rows, slots, origin, first, last, [&](prim::RowBlock<const float> keys, index_t u, bool begins, bool ends) {
      if (begins) std::fill_n(mean, dim, 0.0f), n = 0;
      prim::UnitFold<B>::sum(keys, dim, mean);
      n += keys.rows;
      if (!ends) return;
      for (index_t d = 0; d < dim; ++d) mean[d] /= static_cast<float>(n);
      prim::PageCodec<B, prim::ExactRows>::encode({shape.dtype}, UnitRows::span(shape, state.plane[0]), u, 1, {mean, 1, dim});
    });
  }
  template <Backend B>
  void prepare(const ReadView<B>& view, index_t, const float* query, float* out) const {
    std::copy_n(query, view.shape.head_dim, out);
  }
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> queries,
             prim::RowBlock<float> out) const {
    prim::PageCodec<B, prim::ExactRows>::scores({view.shape.dtype}, UnitRows::span(view.shape, view.state[head].plane[0]), first, count,
                                                queries, out);
  }
};

}  // namespace kvcondense::retrieve
