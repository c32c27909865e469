#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>

namespace kvcondense::prim {

/// How a page stores rows (one row = the key or the value of one slot). The description half of a
/// codec: plain data and pure functions; the backend half is `PageCodec<B, C>`.
template <class C>
concept CodecDescription = requires(const C c, index_t n) {
  { c.page_bytes(n, n) } -> std::same_as<std::size_t>;  // (slots, dim): bytes of a page's payload
  { c.group_slots() } -> std::same_as<index_t>;         // slots that share parameters; 1 = independent
  { c.valid(n) } -> std::same_as<bool>;                 // (dim): can rows of this size be stored?
  { c.fingerprint() } -> std::same_as<std::int64_t>;    // differs when the same bytes mean other numbers
};

/// Slots of a page of codes where other pages have `page_slots`: whole groups.
template <CodecDescription C>
constexpr index_t coded_page_slots(const C& codec, index_t page_slots) {
  const index_t g = codec.group_slots();
  return (page_slots + g - 1) / g * g;
}

/// Rows as plain numbers. Slots are independent.
struct ExactRows {
  DType dtype = DType::f16;

  std::size_t page_bytes(index_t slots, index_t dim) const {
    return static_cast<std::size_t>(slots * dim) * size_of(dtype);
  }
  index_t group_slots() const { return 1; }
  bool valid(index_t dim) const { return dim > 0; }
  std::int64_t fingerprint() const { return static_cast<std::int64_t>(dtype); }
};

static_assert(CodecDescription<ExactRows>);

/// A page as its codec sees it: payload, capacity in slots, numbers per row; and the payload of one that is
/// read soon after this one, where that is known, so that it can be asked for early.
struct PageSpan {
  std::byte* data = nullptr;
  index_t slots = 0;
  index_t dim = 0;
  const std::byte* next = nullptr;
};

/// Slots [first, first + count) of a page, and the column of scores or weights that belongs to the first of them.
struct PagePiece {
  PageSpan page;
  index_t first = 0;
  index_t count = 0;
  index_t at = 0;
};

/// Several query or weight rows, `rows` of them, `step` elements apart.
template <class T>
struct RowBlock {
  T* data = nullptr;
  index_t rows = 0;
  index_t step = 0;
};

/// The backend half of a codec. A specialisation has these static members; slots [first, first +
/// count) are physical places in one page; `first` and `count` of `encode` are multiples of
/// `group_slots()`.
///
///   encode(codec, page, first, count, RowBlock<const float> rows) -> index_t   numbers repaired (NaN, Inf)
///   decode(codec, page, first, count, RowBlock<float> rows)
///   move(codec, to, to_slot, from, from_slot)               only where group_slots() == 1; may alias
///   scores(codec, page, first, count, RowBlock<const float> queries, RowBlock<float> out)
///       out[r][i] = queries[r] . row[first + i]              overwritten; parameters folded into q
///   accumulate(codec, page, first, count, RowBlock<const float> weights, RowBlock<float> out)
///       out[r][:] += sum_i weights[r][i] * row[first + i]    parameters folded into the weights
///   scores(codec, span<const PagePiece>, queries, out)      may be left out, as may `accumulate` with pieces: the same for
///       pieces of pages of one shape, which may overlap what they do for one with what they do for the next. A page may
///       come several times, and places in any order, but no two pieces of scores share one; sums are those of single calls in
///       the order of the list, bit for bit. As for one piece, `out` has as many rows as there are queries or weights
///   kernel(codec, page, sums) -> const char*                may be left out: the name of what `scores` or `accumulate`
///       runs on such pages here, null where that is nothing but loops over rows
///
/// Codes are unpacked once per call and used for every row of the block: callers pass all query
/// heads of a KV head together. What is read for every page takes its page and blocks by reference: copies of what was
/// just written keep a processor from beginning a page before it has ended the one before.
template <Backend B, class C>
struct PageCodec {
  static_assert(detail::always_false<B, C>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first, and store rows with a codec "
                "that this backend knows.");
};

/// `scores` of pieces of pages of one shape: out[r][piece.at + i] is of slot piece.first + i.
template <Backend B, CodecDescription C>
void score_pieces(const C& codec, std::span<const PagePiece> pieces, const RowBlock<const float>& queries, const RowBlock<float>& out) {
  if constexpr (requires { PageCodec<B, C>::scores(codec, pieces, queries, out); }) PageCodec<B, C>::scores(codec, pieces, queries, out);
  else
    for (const PagePiece& p : pieces)
      PageCodec<B, C>::scores(codec, p.page, p.first, p.count, queries, {out.data + p.at, out.rows, out.step});
}

/// `accumulate` of pieces of pages of one shape: weights[r][piece.at + i] is of slot piece.first + i.
template <Backend B, CodecDescription C>
void add_pieces(const C& codec, std::span<const PagePiece> pieces, const RowBlock<const float>& weights, const RowBlock<float>& out) {
  if constexpr (requires { PageCodec<B, C>::accumulate(codec, pieces, weights, out); }) PageCodec<B, C>::accumulate(codec, pieces, weights, out);
  else
    for (const PagePiece& p : pieces)
      PageCodec<B, C>::accumulate(codec, p.page, p.first, p.count, {weights.data + p.at, weights.rows, weights.step}, out);
}

}  // namespace kvcondense::prim
