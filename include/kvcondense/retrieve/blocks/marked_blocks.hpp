#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/top_k.hpp>
#include <kvcondense/retrieve/blocks/unit_rows.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Partition: blocks of `tokens` slots and a landmark behind them, which is scored and not read.
struct MarkedBlocks {
  index_t tokens = 50;

  constexpr index_t size() const { return tokens + 1; }
  constexpr index_t origin() const { return 0; }
  constexpr bool partial() const { return false; }
  constexpr index_t unread() const { return 1; }
};

/// Summary: the key of the last slot of a unit.
struct LastKey {
  index_t slots = 51;

  constexpr index_t size() const { return slots; }
  std::size_t plane_bytes(const CacheShape& shape, int plane) const { return MeanKey{slots}.plane_bytes(shape, plane); }
  std::size_t read_bytes(const CacheShape& shape, index_t n) const { return MeanKey{slots}.read_bytes(shape, n); }
  constexpr index_t width(const CacheShape& shape) const { return shape.head_dim; }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t origin, index_t first, index_t last, UnitState& state) const {
    const index_t dim = rows.shape->head_dim;
    float key[max_head_dim];
    for (index_t u = first; u < last; ++u) {
      const index_t slot = origin + (u + 1) * slots - 1;
      std::fill_n(key, dim, 0.0f);  // of a unit that is not full nobody asks
      if (slot < rows.slots) rows.keys->read(rows.at.head, slot, {key, 1, dim});
      prim::PageCodec<B, prim::ExactRows>::encode({rows.shape->dtype}, UnitRows::span(*rows.shape, state.plane[0]), u, 1, {key, 1, dim});
    }
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

/// Selector: the blocks with the best landmarks. A block's logits are shifted so that together they weigh what its landmark
/// does: that is a softmax over landmarks and slots that are kept, times one within each block.
struct GroupedBlocks {
  index_t blocks = 4;
  index_t tokens = 50;

  constexpr bool biases() const { return true; }
  template <Backend B>
  constexpr index_t budget(const ReadView<B>&, index_t) const {
    return blocks;
  }
  template <Backend B>
  constexpr bool takes_all(const ReadView<B>&, index_t, index_t) const {
    return false;  // landmarks are never read
  }
  std::size_t workspace_bytes(const CacheShape& shape, index_t, index_t) const { return Scratch::bytes_for<index_t>(shape.q_heads); }

  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>& view, RaggedView<const float> scores, const UnitLists& lists, Scratch& scratch) const {
    auto* total = scratch.take<index_t>(scores.heads);
    if (total == nullptr) return Status::workspace_too_small;
    std::fill_n(total, scores.heads, blocks);
    if (const Status s = prim::TopK<B>::run(ctx, scores, nullptr, total, lists.units, lists.count); s != Status::ok) return s;
    const float scale = view.shape.softmax_scale;
    ctx.parallel(scores.heads, [&](index_t r, index_t) {
      constexpr index_t tile = 16;
      const index_t dim = view.shape.head_dim, head = r * view.heads() / scores.heads;
      const float* q = view.query(view.tokens - 1, r);
      float keys[tile * max_head_dim];
      for (index_t i = 0; i < lists.count[r]; ++i) {
        const index_t unit = lists.units.row(r)[i], begin = unit * (tokens + 1);
        float top = -std::numeric_limits<float>::infinity();
        double sum = 0.0;
        for (index_t at = 0; at < tokens; at += tile) {
          const index_t n = std::min(tile, tokens - at);
          view.keys->read(head, begin + at, {keys, n, dim});
          for (index_t k = 0; k < n; ++k) {
            float dot = 0.0f;
            for (index_t d = 0; d < dim; ++d) dot += q[d] * keys[k * dim + d];
            const float l = scale * dot;
            if (l > top) sum *= static_cast<double>(std::exp(top - l)), top = l;
            sum += static_cast<double>(std::exp(l - top));
          }
        }
        lists.bias[scores.offset[r] + i] = scale * scores.row(r)[unit] - top - static_cast<float>(std::log(sum));
      }
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::retrieve
