#pragma once

#include <algorithm>
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

  index_t from(index_t token) const { return query_positions == nullptr ? 0 : query_positions[token]; }
};

/// A head as `prim::Attend<Cpu>` reads it.
template <class H>
struct HeadReader {
  using Cursor = cache::Cursor;

  const H* head;
  ReadRotation rotation;

  index_t slots() const { return head->slots(); }

  prim::SummarySlot summary() const { return head->summary.slot(); }
  prim::SlotScalars scalars() const {
    const auto lane = [&](index_t l) { return l < 0 ? nullptr : head->lane[l].data(); };
    return {nullptr, lane(head->bias), lane(head->value_scale)};
  }

  index_t query_width() const { return head->keys.width(); }
  index_t value_width() const { return head->values.width(); }
  /// Raw keys are decoded and rotated before they meet a query, so there is no second form.
  void begin_queries(prim::RowBlock<float> queries) const {
    if (rotation.table == nullptr) head->keys.begin_queries(queries);
  }
  void finish_values(prim::RowBlock<float> sums) const { head->values.finish_values(sums); }

  /// Rotates a query from where it is (its own position, or nowhere) to the slot it stands at.
  void prepare_query(float* q, index_t token, index_t slot) const {
    if (rotation.control != nullptr) rotation.control->clear(q, rotation.from(token));
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

  void seek(Cursor& keys, Cursor& values, index_t slot) const {
    head->keys.skip(keys, slot);
    head->values.skip(values, slot);
  }

  void key_scores(Cursor& at, index_t n, prim::RowBlock<const float> queries, prim::RowBlock<float> out,
                  index_t first) const {
    if (rotation.table == nullptr) return head->keys.scores(at, n, queries, out);
    // Raw keys: R(p) q . R(16 a + b) k = (R(-16 a) R(p) q) . (R(b) k). Keys turn by one of sixteen
    // small angles, the queries of the block once per sixteen slots.
    constexpr index_t tile = prim::RopeTable::tile;
    const index_t dim = head->keys.dim();
    float keys[tile * max_head_dim];
    float turned[Column<prim::ExactRows>::max_rows * max_head_dim];
    for (index_t i = 0; i < n;) {
      const index_t b = (first + i) % tile, m = std::min(tile - b, n - i);
      head->keys.decode(at, {keys, m, dim});
      for (index_t k = 0; k < m; ++k) rotation.table->turn_fine(keys + k * dim, b + k);
      for (index_t r = 0; r < queries.rows; ++r) {
        std::copy_n(queries.data + r * queries.step, dim, turned + r * dim);
        rotation.table->turn_back_coarse(turned + r * dim, (first + i) / tile);
      }
      prim::cpu::dot_rows(keys, m, dim, {turned, queries.rows, dim}, {out.data + i, out.rows, out.step});
      i += m;
    }
  }

  void add_values(Cursor& at, index_t n, prim::RowBlock<const float> weights, prim::RowBlock<float> out) const {
    head->values.accumulate(at, n, weights, out);
  }
};

}  // namespace kvcondense::cache
