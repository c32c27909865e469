#pragma once

#include <algorithm>
#include <cstring>
#include <span>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/query_columns.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/attend.hpp>
#include <kvcondense/prim/paged_rows.hpp>

namespace kvcondense::prim {

namespace cpu {

inline void read_paged(const PagedTensor& t, index_t page, index_t head, index_t slot, float* out) {
  for (index_t d = 0; d < t.dim; d += t.layout.chunk) {
    const index_t n = std::min(t.layout.chunk, t.dim - d);
    const std::byte* from = t.at(page, head, slot, d);
    if (t.dtype == DType::f32) {
      std::memcpy(out + d, from, static_cast<std::size_t>(n) * sizeof(float));
      continue;
    }
    // Numbers that lie together are widened by the vector; a channel alone, or an odd address, is not worth it.
    if (n >= 8 && reinterpret_cast<std::uintptr_t>(from) % 2 == 0) {
      row_ops().widen(t.dtype, reinterpret_cast<const std::uint16_t*>(from), n, out + d);
      continue;
    }
    std::uint16_t bits;
    for (index_t i = 0; i < n; ++i) {
      std::memcpy(&bits, from + 2 * i, 2);
      out[d + i] = t.dtype == DType::f16 ? detail::half_value(bits) : detail::bfloat16_value(bits);
    }
  }
}

inline void write_paged(const PagedTensor& t, index_t page, index_t head, index_t slot, const float* row) {
  for (index_t d = 0; d < t.dim; ++d) {
    std::byte* to = t.at(page, head, slot, d);
    if (t.dtype == DType::f32) {
      std::memcpy(to, row + d, sizeof(float));
      continue;
    }
    const std::uint16_t bits = t.dtype == DType::f16 ? detail::half_bits(row[d]) : detail::bfloat16_bits(row[d]);
    std::memcpy(to, &bits, 2);
  }
}

inline void move_paged(const PagedTensor& t, index_t head, index_t to_page, index_t to_slot, index_t page, index_t slot) {
  for (index_t d = 0; d < t.dim; d += t.layout.chunk)
    std::memcpy(t.at(to_page, head, to_slot, d), t.at(page, head, slot, d),
                static_cast<std::size_t>(std::min(t.layout.chunk, t.dim - d)) * size_of(t.dtype));
}

/// Calls use(tile, done, n) for tiles of slots [first, first + count) of a head, as floats.
template <class Use>
void for_paged_tiles(const PagedSequence& s, const PagedTensor& t, index_t head, index_t first, index_t count, Use&& use) {
  alignas(64) float tile[tile_slots * max_head_dim];
  for (index_t done = 0; done < count; done += tile_slots) {
    const index_t n = std::min(tile_slots, count - done);
    for (index_t i = 0; i < n; ++i) {
      const index_t slot = first + done + i;
      read_paged(t, s.page(slot), head, slot % s.page_slots, tile + i * t.dim);
    }
    use(tile, done, n);
  }
}

}  // namespace cpu

/// A head of a paged sequence as `Attend<Cpu>` reads it: rows where they lie, widened tile by tile.
struct PagedHead {
  struct Cursor {
    index_t at = 0;
  };
  const PagedSequence* sequence;
  index_t head;

  index_t slots() const { return sequence->slots[head]; }
  SlotScalars scalars() const { return {}; }
  void seek(Cursor& key, Cursor& value, index_t slot) const { key.at = value.at = slot; }
  void prepare_query(float*, index_t, index_t) const {}
  void key_scores(Cursor& cursor, index_t n, RowBlock<const float> queries, RowBlock<float> out, index_t) const {
    const PagedTensor& keys = sequence->keys;
    cpu::for_paged_tiles(*sequence, keys, head, cursor.at, n, [&](const float* tile, index_t done, index_t m) {
      cpu::dot_rows(tile, m, keys.dim, queries, {out.data + done, out.rows, out.step});
    });
    cursor.at += n;
  }
  void add_values(Cursor& cursor, index_t n, RowBlock<const float> weights, RowBlock<float> out) const {
    const PagedTensor& values = sequence->values;
    cpu::for_paged_tiles(*sequence, values, head, cursor.at, n, [&](const float* tile, index_t done, index_t m) {
      cpu::add_rows(tile, m, values.dim, {weights.data + done, weights.rows, weights.step}, out);
    });
    cursor.at += n;
  }
};

}  // namespace kvcondense::prim

namespace kvcondense {

/// Keys or values of a paged sequence as policies read them.
class PagedRows final : public SlotRows<Cpu> {
 public:
  PagedRows(const prim::PagedSequence& sequence, bool values) : sequence_(&sequence), values_(values) {}
  index_t dim() const noexcept override { return tensor().dim; }
  void read(index_t head, index_t first, prim::RowBlock<float> out) const noexcept override {
    for (index_t i = 0; i < out.rows; ++i)
      prim::cpu::read_paged(tensor(), sequence_->page(first + i), head, (first + i) % sequence_->page_slots,
                            out.data + i * out.step);
  }

 private:
  const prim::PagedTensor& tensor() const { return values_ ? sequence_->values : sequence_->keys; }
  const prim::PagedSequence* sequence_;
  bool values_;
};

/// Attention of the newest queries over a paged sequence, for policies that ask for columns. `queries` are those of
/// as many newest tokens as the engine kept, all of them still in every head; noise is drawn by slots, since pages
/// do not know tokens.
class PagedColumns final : public QueryColumns<Cpu> {
 public:
  PagedColumns(const prim::PagedSequence& sequence, const CacheShape& shape, TensorView<const float, 3> queries,
               std::span<std::byte> scratch)
      : sequence_(&sequence), shape_(shape), queries_(queries), scratch_(scratch) {}

  index_t rows() const noexcept override { return queries_.extent[1]; }
  Status run(Context<Cpu>& ctx, const prim::ColumnRequest& request) const noexcept override {
    if (request.rows < 0 || request.rows > rows()) return Status::out_of_range;
    Context<Cpu> own = ctx.with_workspace(scratch_);
    return prim::AttendColumns<Cpu>::run(own, request, shape_, [&](index_t h) { return Head{{sequence_, h}, this, request.rows}; });
  }

 private:
  struct Head : prim::PagedHead {
    const PagedColumns* at;
    index_t rows;
    Head(prim::PagedHead base, const PagedColumns* columns, index_t n) : prim::PagedHead(base), at(columns), rows(n) {}
    index_t token(index_t slot) const { return slot; }
    index_t row_token(index_t row) const { return slots() - rows + row; }
    index_t visible(index_t row) const { return std::max<index_t>(0, row_token(row) + 1); }
    void load_query(index_t row, index_t member, float* q) const {
      const index_t t = queries().extent[1] - rows + row;
      for (index_t d = 0; d < queries().extent[2]; ++d) q[d] = queries()(head * at->shape_.group() + member, t, d);
    }
    const TensorView<const float, 3>& queries() const { return at->queries_; }
  };

  const prim::PagedSequence* sequence_;
  CacheShape shape_;
  TensorView<const float, 3> queries_;
  std::span<std::byte> scratch_;
};

namespace prim {

/// Writes tokens behind the last slot of every head: keys [kv_heads, tokens, dim] and values. The table has room.
inline void append_paged(Context<Cpu>& ctx, const PagedSequence& s, TensorView<const float, 3> keys, TensorView<const float, 3> values) {
  ctx.parallel(keys.extent[0], [&](index_t h, index_t) {
    float row[max_head_dim];
    for (index_t t = 0; t < keys.extent[1]; ++t) {
      const index_t slot = s.slots[h] + t;
      for (const bool value : {false, true}) {
        const TensorView<const float, 3>& from = value ? values : keys;
        for (index_t d = 0; d < from.extent[2]; ++d) row[d] = from(h, t, d);
        cpu::write_paged(value ? s.values : s.keys, s.page(slot), h, slot % s.page_slots, row);
      }
    }
  });
}

/// Moves the kept slots of a head to its front, in order; `kept` ascends. Bytes move as they are.
inline void keep_paged(const PagedSequence& s, index_t head, std::span<const std::int32_t> kept) {
  for (std::size_t i = 0; i < kept.size(); ++i) {
    const auto to = static_cast<index_t>(i);
    const index_t from = kept[i];
    if (from == to) continue;
    for (const PagedTensor* t : {&s.keys, &s.values})
      cpu::move_paged(*t, head, s.page(to), to % s.page_slots, s.page(from), from % s.page_slots);
  }
}

}  // namespace prim
}  // namespace kvcondense
