#pragma once

#include <algorithm>
#include <span>
#include <type_traits>
#include <utility>

#include <kvcondense/backend/cpu/paged_rows.hpp>
#include <kvcondense/backend/cpu/query_columns.hpp>
#include <kvcondense/cache/query_window.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/external/borrowed.hpp>
#include <kvcondense/prim/attend.hpp>

namespace kvcondense::external {

/// A KV head of a borrowed layer as attention reads it, with what a merge stage adds to logits and multiplies values by.
struct BorrowedHead : prim::PagedHead {
  prim::SlotScalars own{};
  BorrowedHead(const prim::PagedSequence* s, index_t h, const prim::SlotScalars& scalars) : prim::PagedHead{s, h}, own(scalars) {}
  prim::SlotScalars scalars() const { return own; }
};

/// What a policy looks at of a layer in an engine's memory: `keys` and `values` as rows, `head(h)` as attention reads it, and which
/// tokens slots hold. One specialisation per form of memory; `counts`: slots of each head.
template <class Memory>
class LayerSlots;

/// A layer whose rows lie as the engine wrote them.
template <>
class LayerSlots<BorrowedLayer> {
 public:
  /// bias, value_scale: numbers that attention reads; or empty.
  LayerSlots(const BorrowedLayer& layer, const index_t* counts, RaggedView<const std::int32_t> ordinals, RaggedView<const float> bias = {},
             RaggedView<const float> value_scale = {})
      : tokens(ordinals), sequence_(layer.sequence(counts)), bias_(bias), value_scale_(value_scale) {}
  LayerSlots(const LayerSlots&) = delete;

  BorrowedHead head(index_t h) const {
    const auto row = [&](const RaggedView<const float>& v) { return v.data == nullptr ? nullptr : v.row(h); };
    return {&sequence_, h, {nullptr, row(bias_), row(value_scale_)}};
  }

  RaggedView<const std::int32_t> tokens;  ///< ordinals, ascending

 private:
  prim::PagedSequence sequence_;
  RaggedView<const float> bias_, value_scale_;

 public:
  const PagedRows keys{sequence_, false}, values{sequence_, true};
};

/// Attention of the newest queries over a borrowed layer, for policies that ask for columns; queries of earlier steps come from
/// the window that the condenser keeps for policies that look back.
template <class Memory>
class BorrowedColumns final : public QueryColumns<Cpu> {
  using Slots = LayerSlots<Memory>;

 public:
  BorrowedColumns(const Slots& slots, const CacheShape& shape, TensorView<const float, 3> queries, const cache::QueryWindow& window,
                  index_t seen, std::span<std::byte> scratch)
      : slots_(&slots), shape_(shape), queries_(queries), window_(&window), seen_(seen), scratch_(scratch) {}

  index_t rows() const noexcept override {
    const index_t now = queries_.extent[1], kept = window_->most();
    return kept == 0 ? now : std::max(now, std::min(kept, window_->size() + now));
  }
  Status run(Context<Cpu>& ctx, const prim::ColumnRequest& request) const noexcept override {
    if (request.rows < 0 || request.rows > rows()) return Status::out_of_range;
    Context<Cpu> own = ctx.with_workspace(scratch_);
    return prim::AttendColumns<Cpu>::run(own, request, shape_, [&](index_t h) { return Head(*this, h, request.rows); });
  }

 private:
  struct Head {
    using Reader = std::remove_cvref_t<decltype(std::declval<const Slots&>().head(0))>;
    using Cursor = typename Reader::Cursor;
    const BorrowedColumns* at;
    index_t head, rows;
    Reader reader;
    Head(const BorrowedColumns& c, index_t h, index_t n) : at(&c), head(h), rows(n), reader(c.slots_->head(h)) {}
    index_t slots() const { return reader.slots(); }
    prim::SlotScalars scalars() const { return reader.scalars(); }
    index_t query_width() const { return prim::query_width(reader, at->shape_.head_dim); }
    void begin_queries(prim::RowBlock<float> queries) const {
      if constexpr (requires { reader.begin_queries(queries); }) reader.begin_queries(queries);
    }
    void key_scores(Cursor& cursor, index_t n, prim::RowBlock<const float> queries, prim::RowBlock<float> out, index_t first) const {
      reader.key_scores(cursor, n, queries, out, first);
    }
    index_t token(index_t slot) const { return at->slots_->tokens.row(head)[slot]; }
    index_t below(index_t token) const {
      const std::int32_t* row = at->slots_->tokens.row(head);
      return std::lower_bound(row, row + slots(), token) - row;
    }
    index_t row_token(index_t row) const { return at->seen_ - rows + row; }
    index_t visible(index_t row) const { return below(row_token(row) + 1); }
    void skip(Cursor& cursor, index_t n) const { cursor.at += n; }
    void load_query(index_t row, index_t member, float* q) const {
      const index_t dim = at->shape_.head_dim, q_head = head * at->shape_.group() + member;
      const index_t step = row - (rows - at->queries_.extent[1]);  // in this step's queries, or before them
      if (step < 0) return void(std::copy_n(at->window_->row(at->window_->size() + step) + q_head * dim, dim, q));
      for (index_t d = 0; d < dim; ++d) q[d] = at->queries_(q_head, step, d);
    }
  };

  const Slots* slots_;
  CacheShape shape_;
  TensorView<const float, 3> queries_;
  const cache::QueryWindow* window_;
  index_t seen_;
  std::span<std::byte> scratch_;
};

}  // namespace kvcondense::external
