#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <kvcondense/cache/column_pair.hpp>
#include <kvcondense/prim/symmetric_eigen.hpp>

namespace kvcondense::cache {

/// The keys or the values of the heads of a group, which store one row for all: the sum of what each head's map makes of its
/// own. Where maps are found from data, they are found once, from rows of all heads side by side: the principal directions of
/// such long rows, of which each head has the part that meets its own numbers.
template <class H, class C>
struct ColumnSum {
  using Side = typename ColumnPair<H, C>::Side;

  const Side* side;
  index_t members;
  float* rows;  ///< floats(...) of them

  /// Two pages of rows, a page of long ones, their products, and two numbers for each of theirs.
  static index_t floats(index_t page, index_t dim, index_t members) {
    const index_t n = dim * members;
    return (2 * dim + n) * page + n * n + 2 * n;
  }

  /// Shares whole pages of tokens that all heads hold at the front of their windows. Where one has others there rows stay
  /// exact: no head can make the row of all. What the resource refuses stays as it is and is tried again.
  void run() {
    const C& first = *side[0].column;
    if (!first.paired()) return;
    index_t due = side[0].due(0), found = 0;
    for (index_t l = 0; l < members; ++l) {
      due = std::min(due, side[l].due(0));
      found += !side[l].column->map().waits();
      if (print(*side[l].column) != print(first)) return;
    }
    index_t same = 0;
    while (same < due && alike(same)) ++same;
    const index_t pages = same / page();
    if (pages == 0 || (found != 0 && found != members)) return;
    if (found == 0 && (same < first.flush_rule().first || !find(same))) return;
    index_t done = 0;
    while (done < pages && share()) ++done;
    for (index_t l = 0; l < members && done > 0; ++l) side[l].head->changed(side[l].first);
  }

 private:
  /// Of what codes the rows of all.
  static std::int64_t print(const C& column) { return code_fingerprint(column.coded().codec()); }
  index_t dim() const { return side[0].column->dim(); }
  index_t page() const { return side[0].column->coded().page_slots(); }
  bool alike(index_t i) const {
    const auto token = side[0].head->ids[side[0].first + i];
    for (index_t l = 1; l < members; ++l)
      if (side[l].head->ids[side[l].first + i] != token) return false;
    return true;
  }

  /// From the first `count` window slots.
  bool find(index_t count) {
    Status room = Status::ok;
    for (index_t l = 0; l < members && room == Status::ok; ++l) room = side[l].column->map().reserve_state();
    if (room != Status::ok) {
      for (index_t l = 0; l < members; ++l) side[l].column->map().trim();
      return false;
    }
    const index_t n = dim() * members;
    float *wide = rows + 2 * page() * dim(), *products = wide + page() * n;
    std::fill_n(products, n * n, 0.0f);
    for (index_t done = 0; done < count; done += page()) {
      const index_t some = std::min(page(), count - done);
      for (index_t l = 0; l < members; ++l) {
        Cursor at{2, 0, 0};
        side[l].column->skip(at, done);
        side[l].column->decode(at, {wide + l * dim(), some, n});
      }
      for (index_t i = 0; i < some; ++i) add_products(wide + i * n, n, products);
    }
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < i; ++j) products[i * n + j] = products[j * n + i];
    prim::symmetric_eigen(products, n, products + n * n, products + n * n + n);
    for (index_t l = 0; l < members; ++l) {
      auto& map = side[l].column->map();
      const index_t rank = map.state_floats() / dim();
      for (index_t j = 0; j < rank; ++j) map.add_state({products + j * n + l * dim(), static_cast<std::size_t>(dim())});
    }
    return true;
  }
  /// The upper half; of rows with numbers that have no square nothing.
  static void add_products(const float* x, index_t n, float* products) {
    for (index_t i = 0; i < n; ++i)
      if (!(std::fabs(x[i]) <= 1e15f)) return;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = i; j < n; ++j) products[i * n + j] += x[i] * x[j];
  }

  /// The first page of the windows; false when there is no room for what it becomes.
  bool share() {
    const auto& coded = side[0].column->coded();
    float* sum = rows + page() * dim();
    std::fill_n(sum, page() * dim(), 0.0f);
    for (index_t l = 0; l < members; ++l) {
      Cursor at{2, 0, 0};
      side[l].column->decode(at, {rows, page(), dim()});
      side[l].column->map().forward({rows, page(), dim()});
      for (index_t i = 0; i < page(); ++i)
        for (index_t d = 0; d < coded.dim(); ++d) sum[i * dim() + d] += rows[i * dim() + d];
    }
    for (index_t l = 0; l < members; ++l)
      if (side[l].column->coded().reserve_entry() != Status::ok) return false;
    Page* under = side[0].column->coded().make_rows({sum, page(), dim()}, side[0].head->repaired);
    Page* mine[max_row_group] = {};
    bool room = under != nullptr;
    for (index_t l = 0; l < members && room; ++l) room = (mine[l] = side[l].column->coded().make_page(0)) != nullptr;
    if (!room) {
      for (index_t l = 0; l < members; ++l) side[l].column->coded().drop_page(mine[l]);
      side[0].column->coded().drop_page(under);
      return false;
    }
    for (index_t l = 0; l < members; ++l) {
      mine[l]->under = l == 0 ? under : retain(under);
      side[l].column->take_shared(mine[l]);
    }
    return true;
  }
};

}  // namespace kvcondense::cache
