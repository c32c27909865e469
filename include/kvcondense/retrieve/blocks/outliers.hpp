#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/rank_bits.hpp>
#include <kvcondense/prim/softmax_rows.hpp>
#include <kvcondense/prim/unit_spread.hpp>
#include <kvcondense/retrieve/blocks/unit_rows.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Summary: the mean key of a unit, and how far its keys point away from it: the smallest cosine.
struct MeanKeySpread {
  index_t slots = 8;

  constexpr index_t size() const { return slots; }
  std::size_t plane_bytes(const CacheShape& shape, int plane) const {
    return plane == 0 ? MeanKey{slots}.plane_bytes(shape, 0) : sizeof(float);
  }
  std::size_t read_bytes(const CacheShape& shape, index_t n) const {
    return MeanKey{slots}.read_bytes(shape, n) + static_cast<std::size_t>((n + slots - 1) / slots) * sizeof(float);
  }
  constexpr index_t width(const CacheShape& shape) const { return shape.head_dim; }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t origin, index_t first, index_t last, UnitState& state) const {
    MeanKey{slots}.template build<B>(rows, origin, first, last, state);
    const index_t dim = rows.shape->head_dim;
    float mean[max_head_dim];
    float least = 0.0f;
    UnitRows::each_unit(rows, slots, origin, first, last, [&](prim::RowBlock<const float> keys, index_t u, bool begins, bool ends) {
      if (begins) {
        prim::PageCodec<B, prim::ExactRows>::decode({rows.shape->dtype}, UnitRows::span(*rows.shape, state.plane[0]), u, 1, {mean, 1, dim});
        least = 1.0f;
      }
      least = prim::UnitSpread<B>::smallest_cosine(keys, dim, mean, least);
      if (ends) std::memcpy(state.plane[1].data() + u * static_cast<index_t>(sizeof least), &least, sizeof least);
    });
  }
  template <Backend B>
  void prepare(const ReadView<B>& view, index_t head, const float* query, float* out) const {
    MeanKey{slots}.prepare(view, head, query, out);
  }
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> queries,
             prim::RowBlock<float> out) const {
    MeanKey{slots}.score(view, head, first, count, queries, out);
  }
};

/// Scorer: the softmax over candidates without a head's outliers, the `units` whose keys point furthest away from their
/// mean; those score +inf. Candidates begin with unit 0.
struct OutlierSoftmax {
  index_t units = 48;

  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>& view, RaggedView<float> scores) const {
    mark(view, scores, -std::numeric_limits<float>::infinity());
    if (const Status s = prim::SoftmaxRows<B>::run(ctx, view.shape.softmax_scale, scores); s != Status::ok) return s;
    mark(view, scores, std::numeric_limits<float>::infinity());
    return Status::ok;
  }

 private:
  template <Backend B>
  void mark(const ReadView<B>& view, RaggedView<float> scores, float as) const {
    const index_t per_head = scores.heads / view.heads();
    for (index_t h = 0; h < view.heads(); ++h) {
      const index_t n = scores.length(h * per_head), k = std::min(units, n);
      if (k <= 0) continue;
      const auto key = [&](index_t u) {
        float spread = 0.0f;
        std::memcpy(&spread, view.state[h].plane[1].data() + u * static_cast<index_t>(sizeof spread), sizeof spread);
        return prim::rank_bits(-spread);
      };
      prim::RowCutoff cut = prim::find_cutoff(k, [&](auto&& use) {
        for (index_t u = 0; u < n; ++u) use(key(u));
      });
      for (index_t u = 0; u < n; ++u) {
        const std::uint32_t x = key(u);
        if (!(x > cut.bits || (x == cut.bits && cut.ties-- > 0))) continue;
        for (index_t r = 0; r < per_head; ++r) scores.row(h * per_head + r)[u] = as;
      }
    }
  }
};

}  // namespace kvcondense::retrieve
