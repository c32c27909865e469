#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

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

/// A page as its codec sees it: payload, capacity in slots, numbers per row; and the payload that is read after
/// this one, where that is known, so that it can be asked for early.
struct PageSpan {
  std::byte* data = nullptr;
  index_t slots = 0;
  index_t dim = 0;
  const std::byte* next = nullptr;
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
///   Plan(codec, page_slots, dim)                            a type; may be left out: what `scores` and `accumulate` also take
///       in place of the codec, made once for many pages of one shape
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

/// What `scores` and `accumulate` take for many pages of one shape: the codec's Plan, or the codec itself where it has none.
template <Backend B, CodecDescription C>
decltype(auto) plan_for(const C& codec, [[maybe_unused]] index_t page_slots, [[maybe_unused]] index_t dim) {
  if constexpr (requires { typename PageCodec<B, C>::Plan; }) return typename PageCodec<B, C>::Plan(codec, page_slots, dim);
  else return (codec);
}

}  // namespace kvcondense::prim
