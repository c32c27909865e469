#pragma once

#include <span>
#include <type_traits>

#include <kvcondense/any/any_transform.hpp>
#include <kvcondense/any/inline_value.hpp>
#include <kvcondense/prim/mixed_rows.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::any {

namespace detail {

using CodecRoom = InlineValue<96>;

/// What can be done with a stored codec; one constant table per codec.
struct CodecTable {
  std::size_t (*page_bytes)(const CodecRoom&, index_t slots, index_t dim);
  bool (*valid)(const CodecRoom&, index_t dim);
  std::int64_t (*fingerprint)(const CodecRoom&);
  bool (*wants_scores)(const CodecRoom&);
  index_t (*encode)(const CodecRoom&, prim::PageSpan, index_t first, index_t count,
                    prim::RowBlock<const float>, const float* scores);
  float (*grade)(const CodecRoom&, prim::PageSpan, index_t slot);
  void (*decode)(const CodecRoom&, prim::PageSpan, index_t first, index_t count,
                 prim::RowBlock<float>);
  void (*move)(const CodecRoom&, prim::PageSpan to, index_t to_slot, prim::PageSpan from,
               index_t from_slot);
  void (*scores)(const CodecRoom&, std::span<const prim::PagePiece>, const prim::RowBlock<const float>& queries,
                 const prim::RowBlock<float>& out);
  void (*accumulate)(const CodecRoom&, std::span<const prim::PagePiece>, const prim::RowBlock<const float>& weights,
                     const prim::RowBlock<float>& out);
  const char* (*kernel)(const CodecRoom&, prim::PageSpan, bool sums);
};

template <class C>
struct CodecCalls {
  using Page = prim::PageCodec<Cpu, C>;
  using Rows = prim::RowBlock<const float>;
  using Out = prim::RowBlock<float>;

  static std::size_t page_bytes(const CodecRoom& c, index_t slots, index_t dim) {
    return c.as<C>().page_bytes(slots, dim);
  }
  static bool valid(const CodecRoom& c, index_t dim) { return c.as<C>().valid(dim); }
  static std::int64_t fingerprint(const CodecRoom& c) { return c.as<C>().fingerprint(); }
  static bool wants_scores(const CodecRoom& c) { return prim::wants_scores(c.as<C>()); }
  static index_t encode(const CodecRoom& c, prim::PageSpan page, index_t first, index_t count,
                        Rows rows, const float* scores) {
    if constexpr (requires { Page::encode(c.as<C>(), page, first, count, rows, scores); })
      return Page::encode(c.as<C>(), page, first, count, rows, scores);
    else
      return Page::encode(c.as<C>(), page, first, count, rows);
  }
  static float grade(const CodecRoom& c, prim::PageSpan page, index_t slot) {
    if constexpr (requires { Page::grade(c.as<C>(), page, slot); }) return Page::grade(c.as<C>(), page, slot);
    else return 0.0f;
  }
  static void decode(const CodecRoom& c, prim::PageSpan page, index_t first, index_t count,
                     Out rows) {
    Page::decode(c.as<C>(), page, first, count, rows);
  }
  static void move(const CodecRoom& c, prim::PageSpan to, index_t to_slot, prim::PageSpan from,
                   index_t from_slot) {
    if constexpr (requires { &Page::move; }) Page::move(c.as<C>(), to, to_slot, from, from_slot);
  }
  static void scores(const CodecRoom& c, std::span<const prim::PagePiece> pieces, const Rows& queries, const Out& out) {
    prim::score_pieces<Cpu>(c.as<C>(), pieces, queries, out);
  }
  static void accumulate(const CodecRoom& c, std::span<const prim::PagePiece> pieces, const Rows& weights, const Out& out) {
    prim::add_pieces<Cpu>(c.as<C>(), pieces, weights, out);
  }

  static const char* kernel(const CodecRoom& c, prim::PageSpan page, bool sums) {
    if constexpr (requires { Page::kernel(c.as<C>(), page, sums); }) return Page::kernel(c.as<C>(), page, sums);
    else return nullptr;
  }

  static constexpr CodecTable table{page_bytes, valid,  fingerprint, wants_scores, encode,
                                    grade,      decode, move,        scores,       accumulate, kernel};
};

}  // namespace detail

/// Any codec as a value, behind any transform: a cache of AnyCodec reads and writes pages that are byte for byte those of
/// a cache of the codec itself.
///
/// Needs    a trivially copyable codec of at most 96 bytes whose PageCodec<Cpu, C> is visible.
/// Cost     one indirect call per list of pieces of pages, up to 16 of them; nothing inside loops.
class AnyCodec {
 public:
  AnyCodec();  ///< exact rows
  template <prim::CodecDescription C>
  requires(!std::same_as<C, AnyCodec>) explicit AnyCodec(const C& codec)
      : room_(codec), table_(&detail::CodecCalls<C>::table), group_slots_(codec.group_slots()) {}
  template <prim::TransformDescription T, prim::CodecDescription C>
  explicit AnyCodec(const prim::Transformed<T, C>& both) : AnyCodec(both.codec) {
    transform_ = AnyTransform(both.transform);
  }
  template <prim::TransformDescription T>
  explicit AnyCodec(const prim::Transformed<T, AnyCodec>& both) : AnyCodec(both.codec) {
    transform_ = AnyTransform(both.transform);
  }

  /// The same codec behind a transform that maps rows before its own one does.
  AnyCodec behind(const AnyTransform& first) const {
    AnyCodec c = *this;
    c.before_ = first;
    return c;
  }

  using Transform = prim::Chained<AnyTransform, AnyTransform>;
  Transform transform() const { return {before_, transform_}; }
  bool wants_scores() const { return table_->wants_scores(room_); }

  /// `dim` of pages: behind the transform.
  std::size_t page_bytes(index_t slots, index_t dim) const {
    return table_->page_bytes(room_, slots, dim);
  }
  index_t group_slots() const { return group_slots_; }
  /// `dim` of rows: before the transform.
  bool valid(index_t dim) const {
    return transform().valid(dim) && table_->valid(room_, transform().stored_dim(dim));
  }
  std::int64_t code_fingerprint() const { return table_->fingerprint(room_); }  ///< without the map in front of it
  std::int64_t fingerprint() const {
    if (transform().identity()) return table_->fingerprint(room_);
    return prim::mix_fingerprints(print(transform()), table_->fingerprint(room_));
  }

 private:
  friend struct prim::PageCodec<Cpu, AnyCodec>;

  /// One transform counts as itself, so that numbers are those of the codec as a type.
  static std::int64_t print(const Transform& t) {
    if (t.first.identity()) return t.second.fingerprint();
    return t.second.identity() ? t.first.fingerprint() : t.fingerprint();
  }

  detail::CodecRoom room_;
  const detail::CodecTable* table_;
  index_t group_slots_;
  AnyTransform before_{};
  AnyTransform transform_{};
};

static_assert(prim::CodecDescription<AnyCodec> && std::is_trivially_copyable_v<AnyCodec>);

}  // namespace kvcondense::any

namespace kvcondense::prim {

/// The parts of a codec that is chosen at run time.
template <>
struct CodecParts<any::AnyCodec> {
  using Transform = any::AnyCodec::Transform;
  using Stored = any::AnyCodec;
  static Transform transform(const any::AnyCodec& c) { return c.transform(); }
  static const Stored& stored(const any::AnyCodec& c) { return c; }
};

/// Hands each call to the codec inside; rows come in their stored form.
template <>
struct PageCodec<Cpu, any::AnyCodec> {
  using Codec = any::AnyCodec;

  static index_t encode(const Codec& c, PageSpan page, index_t first, index_t count,
                        RowBlock<const float> rows, const float* scores = nullptr) {
    return c.table_->encode(c.room_, page, first, count, rows, scores);
  }
  static float grade(const Codec& c, PageSpan page, index_t slot) {
    return c.table_->grade(c.room_, page, slot);
  }
  static void decode(const Codec& c, PageSpan page, index_t first, index_t count,
                     RowBlock<float> rows) {
    c.table_->decode(c.room_, page, first, count, rows);
  }
  static void move(const Codec& c, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    c.table_->move(c.room_, to, to_slot, from, from_slot);
  }
  static void scores(const Codec& c, std::span<const PagePiece> pieces, const RowBlock<const float>& queries, const RowBlock<float>& out) {
    c.table_->scores(c.room_, pieces, queries, out);
  }
  static void scores(const Codec& c, const PageSpan& page, index_t first, index_t count, const RowBlock<const float>& queries,
                     const RowBlock<float>& out) {
    const PagePiece piece{page, first, count};
    scores(c, {&piece, 1}, queries, out);
  }
  static void accumulate(const Codec& c, std::span<const PagePiece> pieces, const RowBlock<const float>& weights, const RowBlock<float>& out) {
    c.table_->accumulate(c.room_, pieces, weights, out);
  }
  static void accumulate(const Codec& c, const PageSpan& page, index_t first, index_t count, const RowBlock<const float>& weights,
                         const RowBlock<float>& out) {
    const PagePiece piece{page, first, count};
    accumulate(c, {&piece, 1}, weights, out);
  }
  static const char* kernel(const Codec& c, PageSpan page, bool sums) { return c.table_->kernel(c.room_, page, sums); }
};

}  // namespace kvcondense::prim
