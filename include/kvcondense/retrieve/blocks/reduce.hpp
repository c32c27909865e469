#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/softmax_rows.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Which query heads choose together.
enum class Heads : std::uint8_t {
  each,        ///< every query head for itself
  group_max,   ///< those of a KV head, by their largest score
  group_sum,
  group_mean,
  all_sum,     ///< those of a layer; its KV heads must hold the same number of slots
  group_union, ///< every query head for itself, and all of a KV head read what any of them chose
};

/// Head reducer: makes rows of selection from rows of query heads.
struct ByHeads {
  Heads how = Heads::each;

  constexpr index_t rows(const CacheShape& shape) const { return alone() ? shape.q_heads : shape.kv_heads; }
  constexpr bool unites() const { return how == Heads::group_union; }

  /// `scores` may already be one row per KV head.
  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>& view, RaggedView<const float> scores, RaggedView<float> out) const {
    if (alone()) return prim::FoldRows<B>::run(ctx, scores, 1, prim::RowFold::sum, out);
    const index_t group = how == Heads::all_sum ? 1 : scores.heads / out.heads;
    const auto fold = how == Heads::group_max    ? prim::RowFold::largest
                      : how == Heads::group_mean ? prim::RowFold::mean
                                                 : prim::RowFold::sum;
    if (how != Heads::all_sum) return prim::FoldRows<B>::run(ctx, scores, group, fold, out);
    for (index_t r = 1; r < out.heads; ++r)
      if (out.length(r) != out.length(0)) return Status::not_supported;
    // One row for all, and the same for every KV head.
    if (const Status s = prim::FoldRows<B>::run(ctx, scores, scores.heads, fold, {out.data, out.offset, 1}); s != Status::ok) return s;
    for (index_t r = 1; r < out.heads; ++r)
      if (const Status s = prim::FoldRows<B>::run(ctx, {out.data, out.offset, 1}, 1, fold, {out.data, out.offset + r, 1}); s != Status::ok)
        return s;
    (void)view;
    return Status::ok;
  }

 private:
  constexpr bool alone() const { return how == Heads::each || how == Heads::group_union; }
};

}  // namespace kvcondense::retrieve
