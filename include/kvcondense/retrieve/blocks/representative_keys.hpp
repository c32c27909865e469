#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/retrieve/blocks/unit_rows.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Summary: per query head the mean key of the slots of a unit that drew most of its attention while they were among the
/// newest, scored by inner product.
struct RepresentativeKeys {
  static constexpr index_t most = 64;

  index_t slots = 128;
  index_t count = 4;  ///< slots that stand for a unit, at most `most`
  Watch watched{};

  constexpr index_t size() const { return slots; }
  constexpr Watch watch() const { return watched; }
  std::size_t plane_bytes(const CacheShape& shape, int plane) const {
    return plane == 0 ? static_cast<std::size_t>(shape.group() * shape.head_dim) * size_of(shape.dtype) : 0;
  }
  std::size_t read_bytes(const CacheShape& shape, index_t n) const {
    return static_cast<std::size_t>((n + slots - 1) / slots) * plane_bytes(shape, 0);
  }
  constexpr index_t width(const CacheShape& shape) const { return shape.head_dim; }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t origin, index_t first, index_t last, UnitState& state) const {
    const CacheShape& shape = *rows.shape;
    const index_t dim = shape.head_dim, group = shape.group();
    float keys[most * max_head_dim], mean[max_head_dim];
    index_t best[most];
    for (index_t u = first; u < last; ++u) {
      const index_t begin = origin + u * slots, end = std::min(rows.slots, begin + slots);
      for (index_t g = 0; g < group; ++g) {
        const index_t n = choose(state, group, g, begin, end, best);
        for (index_t i = 0; i < n; ++i) rows.keys->read(rows.at.head, best[i], {keys + i * dim, 1, dim});
        std::fill_n(mean, dim, 0.0f);
        prim::UnitFold<B>::sum({keys, n, dim}, dim, mean);
        for (index_t d = 0; d < dim; ++d) mean[d] /= static_cast<float>(n);
        prim::PageCodec<B, prim::ExactRows>::encode({shape.dtype}, UnitRows::span(shape, state.plane[0]), u * group + g, 1, {mean, 1, dim});
      }
    }
  }
  template <Backend B>
  void prepare(const ReadView<B>& view, index_t, const float* query, float* out) const {
    std::copy_n(query, view.shape.head_dim, out);
  }
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t units, prim::RowBlock<const float> queries,
             prim::RowBlock<float> out) const {
    const prim::PageSpan span = UnitRows::span(view.shape, view.state[head].plane[0]);
    for (index_t i = 0; i < units; ++i)
      for (index_t g = 0; g < queries.rows; ++g)
        prim::PageCodec<B, prim::ExactRows>::scores({view.shape.dtype}, span, (first + i) * queries.rows + g, 1,
                                                    {queries.data + g * queries.step, 1, queries.step}, {out.data + g * out.step + i, 1, out.step});
  }

 private:
  /// The slots of [begin, end) that drew most from a member of the group, equal ones in their order.
  index_t choose(const UnitState& state, index_t group, index_t member, index_t begin, index_t end, index_t* best) const {
    const auto drew = [&](index_t slot) { return slot * group < state.drawn.size() ? state.drawn[slot * group + member] : 0.0f; };
    index_t n = 0;
    for (index_t slot = begin; slot < end; ++slot) {
      index_t at = n;
      while (at > 0 && drew(slot) > drew(best[at - 1])) --at;
      if (at == count) continue;
      n = std::min(n + 1, count);
      std::copy_backward(best + at, best + n - 1, best + n);
      best[at] = slot;
    }
    return n;
  }
};

}  // namespace kvcondense::retrieve
