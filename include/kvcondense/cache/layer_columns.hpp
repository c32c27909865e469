#pragma once

#include <algorithm>
#include <span>

#include <kvcondense/backend/cpu/query_columns.hpp>
#include <kvcondense/cache/head_reader.hpp>
#include <kvcondense/cache/layer.hpp>

namespace kvcondense::cache {

/// The queries of a step and those before it, over the slots of a layer in their stored form.
template <class L>
class LayerColumns final : public QueryColumns<Cpu> {
 public:
  /// queries: of the newest pending tokens. `shape` with the softmax scale that the stored keys need.
  LayerColumns(const L& layer, const CacheShape& shape, const ReadRotation& rotation,
               TensorView<const float, 3> queries, std::span<std::byte> scratch)
      : layer_(&layer), shape_(shape), rotation_(rotation), queries_(queries), scratch_(scratch) {}

  index_t rows() const noexcept override {
    const index_t now = queries_.extent[1], kept = layer_->window.most();
    return kept == 0 ? now : std::max(now, std::min(kept, layer_->window.size() + now));
  }

  Status run(Context<Cpu>& ctx, const prim::ColumnRequest& request) const noexcept override {
    if (request.rows < 0 || request.rows > rows()) return Status::out_of_range;
    Context<Cpu> own = ctx.with_workspace(scratch_);
    return prim::AttendColumns<Cpu>::run(own, request, shape_,
                                         [&](index_t h) { return Head{this, h, request.rows}; });
  }

 private:
  struct Head {
    using Cursor = cache::Cursor;
    const LayerColumns* at;
    index_t kv_head;
    index_t rows;

    const auto& head() const { return at->layer_->heads[kv_head]; }
    HeadReader<typename L::Head> reader() const { return {&head(), at->rotation_}; }
    index_t slots() const { return head().slots(); }
    index_t token(index_t slot) const { return head().ids[slot]; }
    index_t below(index_t token) const { return head().ids.below(token); }
    index_t row_token(index_t row) const { return at->layer_->counters.seen - rows + row; }
    index_t visible(index_t row) const { return head().ids.below(row_token(row) + 1); }

    void load_query(index_t row, index_t member, float* q) const {
      const index_t dim = at->shape_.head_dim, now = at->queries_.extent[1];
      const index_t q_head = kv_head * at->shape_.group() + member;
      const index_t step = row - (rows - now);  // in this step's queries, or before them
      const QueryWindow& window = at->layer_->window;
      index_t position = 0;
      if (step >= 0) {
        for (index_t d = 0; d < dim; ++d) q[d] = at->queries_(q_head, step, d);
        const Counters& c = at->layer_->counters;
        position = at->layer_->pending_positions[c.pending - now + step];
      } else {
        const index_t old = window.size() + step;
        std::copy_n(window.row(old) + q_head * dim, dim, q);
        position = window.position(old);
      }
      if (at->rotation_.control != nullptr) at->rotation_.control->clear(q, position);
      const index_t slot = visible(row) - 1;
      reader().stand(q, slot);
      if (at->rotation_.table == nullptr || slot < 0) return;
      at->rotation_.table->rotate(q, slot - (at->rotation_.query_positions == nullptr ? 0 : position));
    }
    prim::SlotScalars scalars() const { return reader().scalars(); }
    void hide(index_t visible, index_t first, index_t n, float* logits) const { reader().hide(visible, first, n, logits); }
    index_t query_width() const { return reader().query_width(); }
    void skip(Cursor& cursor, index_t n) const { head().keys.skip(cursor, n); }
    void begin_queries(prim::RowBlock<float> queries) const { reader().begin_queries(queries); }
    void key_scores(Cursor& cursor, index_t n, prim::RowBlock<const float> queries, prim::RowBlock<float> out,
                    index_t first) const {
      reader().key_scores(cursor, n, queries, out, first);
    }
  };

  const L* layer_;
  CacheShape shape_;
  ReadRotation rotation_;
  TensorView<const float, 3> queries_;
  std::span<std::byte> scratch_;
};

}  // namespace kvcondense::cache
