#pragma once

#include <algorithm>
#include <span>

#include <kvcondense/backend/cpu/paged_rows.hpp>
#include <kvcondense/backend/cpu/query_columns.hpp>
#include <kvcondense/cache/query_window.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/attend.hpp>

namespace kvcondense::external {

/// A KV head of a borrowed layer as attention reads it, with what a merge stage adds to logits and multiplies values by.
struct BorrowedHead : prim::PagedHead {
  prim::SlotScalars own{};
  BorrowedHead(const prim::PagedSequence* s, index_t h, const prim::SlotScalars& scalars) : prim::PagedHead{s, h}, own(scalars) {}
  prim::SlotScalars scalars() const { return own; }
};

/// What attention over a borrowed layer must know: its rows, the tokens that slots hold, and numbers of slots.
struct BorrowedSlots {
  const prim::PagedSequence* sequence = nullptr;
  RaggedView<const std::int32_t> tokens{};  ///< ordinals, ascending
  RaggedView<const float> bias{};           ///< added to logits; or empty
  RaggedView<const float> value_scale{};    ///< multiplied with values; or empty

  BorrowedHead head(index_t h) const {
    const auto row = [&](const RaggedView<const float>& v) { return v.data == nullptr ? nullptr : v.row(h); };
    return {sequence, h, {nullptr, row(bias), row(value_scale)}};
  }
  index_t below(index_t h, index_t token) const {
    const std::int32_t* row = tokens.row(h);
    return std::lower_bound(row, row + tokens.length(h), token) - row;
  }
};

/// Attention of the newest queries over a borrowed layer, for policies that ask for columns; queries of earlier steps come from
/// the window that the condenser keeps for policies that look back.
class BorrowedColumns final : public QueryColumns<Cpu> {
 public:
  BorrowedColumns(const BorrowedSlots& slots, const CacheShape& shape, TensorView<const float, 3> queries, const cache::QueryWindow& window,
                  index_t seen, std::span<std::byte> scratch)
      : slots_(slots), shape_(shape), queries_(queries), window_(&window), seen_(seen), scratch_(scratch) {}

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
  struct Head : BorrowedHead {
    const BorrowedColumns* at;
    index_t rows;
    Head(const BorrowedColumns& c, index_t h, index_t n) : BorrowedHead(c.slots_.head(h)), at(&c), rows(n) {}
    index_t token(index_t slot) const { return at->slots_.tokens.row(head)[slot]; }
    index_t below(index_t token) const { return at->slots_.below(head, token); }
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

  BorrowedSlots slots_;
  CacheShape shape_;
  TensorView<const float, 3> queries_;
  const cache::QueryWindow* window_;
  index_t seen_;
  std::span<std::byte> scratch_;
};

}  // namespace kvcondense::external
