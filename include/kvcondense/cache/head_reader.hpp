#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/cache/head.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/attend.hpp>
#include <kvcondense/prim/join_gate.hpp>
#include <kvcondense/prim/rope.hpp>

namespace kvcondense::cache {

/// How keys become comparable with queries when they are read. Null table: they already are.
struct ReadRotation {
  const prim::RopeTable* table = nullptr;  ///< covers every slot of the layer
  const index_t* query_positions = nullptr;  ///< of each query token; null: queries come without rotation
  const prim::ControlComponent* control = nullptr;  ///< a component of queries that does not count; null: all do
  index_t reach = 0;  ///< slots farther from a query than this are read as if they were that far; 0: as far as they are

  index_t from(index_t token) const { return query_positions == nullptr ? 0 : query_positions[token]; }
};

/// A head as `prim::Attend<Cpu>` reads it.
template <class H>
struct HeadReader {
  using Cursor = cache::Cursor;

  const H* head;
  ReadRotation rotation;
  const PageProvider<Cpu>* pages = nullptr;  ///< where pages are read, if not where they lie
  const H* then = nullptr;  ///< what is read after this head, if that is known

  index_t slots() const { return head->slots(); }

  prim::SummarySlot summary() const { return head->summary.slot(); }
  prim::SlotScalars scalars() const {
    const auto lane = [&](index_t l) { return l < 0 ? nullptr : head->lane[l].data(); };
    return {nullptr, lane(head->bias), lane(head->value_scale)};
  }

  index_t query_width() const { return rotation.reach > 0 ? std::max(head->keys.width(), 2 * head->keys.dim() + 1) : head->keys.width(); }
  index_t value_width() const { return head->values.width(); }
  /// Raw keys are decoded and rotated before they meet a query: a second form is only for slots out of reach, which meet it
  /// without rotation.
  void begin_queries(prim::RowBlock<float> queries) const {
    if (rotation.table == nullptr) return head->keys.begin_queries(queries);
    const index_t dim = head->keys.dim();
    for (index_t r = 0; rotation.reach > 0 && r < queries.rows; ++r) {
      float* q = queries.data + r * queries.step;
      std::copy_n(q, dim, q + dim);
      if (const index_t slot = stands_at(q); slot > rotation.reach) rotation.table->rotate(q + dim, rotation.reach - slot);
    }
  }
  void finish_values(prim::RowBlock<float> sums) const { head->values.finish_values(sums); }

  /// Rotates a query from where it is (its own position, or nowhere) to the slot it stands at.
  void prepare_query(float* q, index_t token, index_t slot) const {
    if (rotation.control != nullptr) rotation.control->clear(q, rotation.from(token));
    stand(q, slot);
    if (rotation.table == nullptr || slot < 0) return;
    rotation.table->rotate(q, slot - rotation.from(token));
  }

  /// Takes away the logits, of slots [first, first + n), of slots whose tokens a later one holds that a query also sees: the
  /// last of its `visible` slots is its own.
  void hide(index_t visible, index_t first, index_t n, float* logits) const {
    if (head->open.pending() == 0) return;
    const index_t begin = std::max({first, head->first_open() - 1, index_t{0}}), end = std::min(first + n, visible - 1);
    for (index_t j = begin; j < end; ++j)
      if (head->passed_on(j)) logits[j - first] = -std::numeric_limits<float>::infinity();
  }
  /// Where a query stands goes with it, behind its two forms.
  void stand(float* q, index_t slot) const {
    if (rotation.reach > 0) q[2 * head->keys.dim()] = std::bit_cast<float>(static_cast<std::int32_t>(std::max<index_t>(0, slot)));
  }

  void seek(Cursor& keys, Cursor& values, index_t slot) const {
    head->keys.skip(keys, slot);
    head->values.skip(values, slot);
  }

  void key_scores(Cursor& at, index_t n, prim::RowBlock<const float> queries, prim::RowBlock<float> out,
                  index_t first) const {
    if (rotation.table == nullptr) return head->keys.scores(at, n, queries, out, pages, then == nullptr ? nullptr : &then->keys);
    // Raw keys: R(p) q . R(16 a + b) k = (R(-16 a) R(p) q) . (R(b) k). Keys turn by one of sixteen
    // small angles, the queries of the block once per sixteen slots.
    constexpr index_t tile = prim::RopeTable::tile;
    const index_t dim = head->keys.dim();
    float keys[tile * max_head_dim];
    float turned[Column<prim::ExactRows>::max_rows * max_head_dim];
    for (index_t i = 0; i < n;) {
      const index_t b = (first + i) % tile, m = std::min(tile - b, n - i);
      head->keys.decode(at, {keys, m, dim}, pages);
      const index_t far = out_of_reach(queries, first + i, m, {keys, m, dim}, {out.data + i, out.rows, out.step});
      if (far == m * queries.rows) {
        i += m;
        continue;
      }
      prim::cpu::turn_rows(keys, m, dim, rotation.table->fine(b), rotation.table->entry(), rotation.table->angles());
      for (index_t r = 0; r < queries.rows; ++r) std::copy_n(queries.data + r * queries.step, dim, turned + r * dim);
      prim::cpu::turn_rows(turned, queries.rows, dim, rotation.table->coarse((first + i) / tile), 0, rotation.table->angles(), true);
      float near[Column<prim::ExactRows>::max_rows * tile];
      const prim::RowBlock<float> to = far == 0 ? prim::RowBlock<float>{out.data + i, out.rows, out.step} : prim::RowBlock<float>{near, out.rows, tile};
      prim::cpu::dot_rows(keys, m, dim, {turned, queries.rows, dim}, to);
      for (index_t r = 0; far > 0 && r < queries.rows; ++r)
        for (index_t k = std::max<index_t>(0, stands_at(queries.data + r * queries.step) - rotation.reach + 1 - first - i); k < m; ++k)
          out.data[r * out.step + i + k] = near[r * tile + k];
      i += m;
    }
  }

  void add_values(Cursor& at, index_t n, prim::RowBlock<const float> weights, prim::RowBlock<float> out) const {
    head->values.accumulate(at, n, weights, out, pages, then == nullptr ? nullptr : &then->values);
  }

 private:
  index_t stands_at(const float* q) const { return std::bit_cast<std::int32_t>(q[2 * head->keys.dim()]); }

  /// How many (query, slot) of a tile are out of reach; where there are any, the scores of all of it as if they were.
  index_t out_of_reach(prim::RowBlock<const float> queries, index_t first, index_t n, prim::RowBlock<const float> keys,
                       prim::RowBlock<float> out) const {
    if (rotation.reach == 0) return 0;
    index_t far = 0;
    for (index_t r = 0; r < queries.rows; ++r)
      far += std::clamp<index_t>(stands_at(queries.data + r * queries.step) - rotation.reach + 1 - first, 0, n);
    const index_t dim = head->keys.dim();
    if (far > 0) prim::cpu::dot_rows(keys.data, n, dim, {queries.data + dim, queries.rows, queries.step}, out);
    return far;
  }
};

}  // namespace kvcondense::cache
