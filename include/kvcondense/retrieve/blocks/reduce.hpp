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

/// What any row of a KV head chose, ascending.
inline void unite(const UnitLists& rows, const UnitLists& out, index_t heads) {
  const index_t group = rows.units.heads / heads;
  for (index_t h = 0; h < heads; ++h) {
    std::int32_t* to = out.units.row(h);
    std::copy_n(rows.units.row(h * group), rows.count[h * group], to);
    index_t n = rows.count[h * group];
    for (index_t r = h * group + 1; r < (h + 1) * group; ++r) {
      const std::int32_t* list = rows.units.row(r);
      index_t fresh = 0;  // merged from the back, where there is room
      for (index_t i = 0; i < rows.count[r]; ++i) fresh += !std::binary_search(to, to + n, list[i]);
      index_t a = n - 1, b = rows.count[r] - 1;
      for (index_t at = n + fresh - 1; b >= 0 && at >= 0; --at) {
        while (b >= 0 && a >= 0 && to[a] == list[b]) --b;
        if (b < 0) break;
        to[at] = a >= 0 && to[a] > list[b] ? to[a--] : list[b--];
      }
      n += fresh;
    }
    out.count[h] = n;
  }
}

}  // namespace kvcondense::retrieve
