#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include <kvcondense/cache/cursor.hpp>
#include <kvcondense/cache/kept.hpp>
#include <kvcondense/cache/own_part.hpp>
#include <kvcondense/cache/piece_list.hpp>
#include <kvcondense/cache/row_map.hpp>
#include <kvcondense/cache/segment.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/row_groups.hpp>

namespace kvcondense::cache {

/// The keys or the values of one head: [ sinks exact ][ coded ][ window exact ], in slot order.
///
/// Keys and values have columns of their own because their coded parts may end at different slots
/// (KIVI codes keys in blocks and values one by one). Readers walk both with cursors, so attention
/// can cut the slots wherever it likes.
///
/// Behind a transform the coded part holds mapped rows, and queries and sums of values have a second form: see RowMap.
template <class Codec>
class Column {
  using Parts = prim::CodecParts<Codec>;
  using Transform = typename Parts::Transform;

 public:
  using Exact = Segment<prim::ExactRows>;
  using Coded = Segment<typename Parts::Stored>;

  Column() = default;
  Column(const prim::ExactRows& exact, const Codec& codec, Flush flush, index_t sinks, index_t dim, index_t page_slots,
         MemoryResource<Cpu>& memory, Together together = Together::alone)
      : sinks_(exact, exact.fingerprint(), dim, std::clamp<index_t>(sinks, 1, page_slots), memory),
        coded_(Parts::stored(codec), codec.fingerprint(), Parts::transform(codec).stored_dim(dim), coded_page_slots(codec, page_slots), memory),
        window_(exact, exact.fingerprint(), dim, window_page_slots(flush, page_slots), memory),
        map_(Parts::transform(codec), dim, memory),
        fingerprint_(codec.fingerprint()),
        flush_(flush),
        together_(together == Together::sums && !map_.mapped() ? Together::alone : together) {}

  /// Coded pages hold whole groups of slots.
  static index_t coded_page_slots(const Codec& codec, index_t page_slots) {
    return prim::coded_page_slots(codec, page_slots);
  }

  index_t slots() const { return sinks_.live() + coded_.live() + window_.live(); }
  index_t dim() const { return window_.dim(); }
  const Exact& sinks() const { return sinks_; }
  const Coded& coded() const { return coded_; }
  const Exact& window() const { return window_; }
  Exact& sinks() { return sinks_; }
  Coded& coded() { return coded_; }
  Exact& window() { return window_; }

  std::size_t page_bytes() const { return sinks_.page_bytes() + coded_.page_bytes() + window_.page_bytes(); }
  std::size_t table_bytes() const {
    return sinks_.table_bytes() + coded_.table_bytes() + window_.table_bytes() + map_.bytes();
  }
  std::size_t shared_bytes() const { return sinks_.shared_bytes() + coded_.shared_bytes() + window_.shared_bytes(); }

  Status reserve(index_t sinks, index_t window) {
    if (const Status s = sinks_.reserve(sinks); s != Status::ok) return s;
    if (const Status s = window_.reserve(window); s != Status::ok) return sinks_.trim(), s;
    return Status::ok;
  }
  void trim() {
    sinks_.trim(), coded_.trim(), window_.trim();
    map_.trim();
  }
  void give_back() { sinks_.give_back(), coded_.give_back(), window_.give_back(); }

  /// After `reserve`: the first `sinks` rows are sinks, the others enter the window.
  void append(prim::RowBlock<const float> rows, index_t sinks) {
    if (sinks > 0) sinks_.append({rows.data, sinks, rows.step});
    if (rows.rows > sinks) window_.append({rows.data + sinks * rows.step, rows.rows - sinks, rows.step});
  }

  /// Whether other layers share rows with this one: what leaves the window then waits for them.
  bool paired() const { return together_ != Together::alone; }
  /// Whether a page of rows that others hold too has a length for each.
  bool has_lengths() const { return together_ == Together::directions; }
  /// What the layer has of its own in a page of the coded part whose rows another one holds too.
  OwnPart own(const PageRef& ref) const { return {window_.codec().dtype, dim(), coded_.page_slots(), *ref.page}; }

  bool own_fits(const PageRef& ref) const { return has_lengths() ? own(ref).valid() : ref.page->payload_bytes == 0; }

  /// Slots that the flush rule codes at the end of a step when the window holds `window` of them.
  index_t due(index_t window) const { return paired() ? 0 : due_alone(window); }
  /// The same whoever else has a say.
  index_t due_alone(index_t window) const {
    const index_t n = due_of(flush_, window, coded_.live() > 0);
    return n < flush_.first && map_.waits() ? 0 : n;
  }

  /// Room for what is due when the window holds `window` slots, however many coded ones are left then.
  Status reserve_due(index_t window) { return reserve_flush(most_due(window)); }
  index_t most_due(index_t window) const { return flush_.whole ? most_due_of(flush_, window) : due(window); }
  Status reserve_flush(index_t count) {
    if (count > 0)
      if (const Status s = map_.reserve(); s != Status::ok) return s;
    return coded_.reserve(count);
  }

  const RowMap<Transform>& map() const { return map_; }
  RowMap<Transform>& map() { return map_; }

  /// Codes the `count` oldest window slots; `rows` is scratch for `scratch_rows` * dim floats. `scores`: null, or
  /// one per slot of the column. `queries`: for transforms that look at them. Returns how many numbers the codec
  /// had to repair.
  index_t flush(index_t count, float* rows, const float* scores = nullptr, const prim::HeadQueries& queries = {}) {
    if (count > 0 && map_.waits()) find_state(count, rows, queries);
    const index_t step = scratch_rows(coded_.page_slots()) / coded_.codec().group_slots() * coded_.codec().group_slots();
    index_t repaired = 0;
    for (index_t done = 0; done < count; done += step) {
      const index_t n = std::min(step, count - done);
      Cursor at{2, 0, 0};
      decode(at, {rows, n, dim()});
      map_.forward({rows, n, dim()});
      repaired += coded_.append({rows, n, dim()}, scores == nullptr ? nullptr : scores + sinks_.live() + coded_.live());
      window_.pop_front(n);
    }
    return repaired;
  }

  static index_t scratch_rows(index_t coded_page_slots) { return 2 * coded_page_slots; }
  /// Floats of scratch that `flush` and `compact` need.
  index_t scratch() const { return scratch_rows(coded_.page_slots()) * dim(); }

  /// After `coded().reserve_entry()`: the oldest window slots, a page of them, are rows of a page that another layer holds too.
  void take_shared(Page* own) {
    coded_.add_shared(own);
    window_.pop_front(coded_.page_slots());
  }

  const Flush& flush_rule() const { return flush_; }
  bool needs_queries() const { return prim::needs_queries(map_.transform()); }
  /// Of the codec with its transform.
  std::int64_t fingerprint() const { return fingerprint_; }

  void keep(const Kept& kept) {
    index_t base = 0;
    const auto part = [&](auto& segment) {
      const index_t here = segment.live();
      segment.keep(kept, base);
      base += here;
    };
    part(sinks_), part(coded_), part(window_);
  }

  void pop_back(index_t n) {
    const auto part = [&](auto& segment) {
      const index_t here = std::min(n, segment.live());
      if (here > 0) segment.pop_back(here);
      n -= here;
    };
    part(window_), part(coded_), part(sinks_);
  }

  index_t compact(float* rows) {
    const auto exact = [](const PageRef&, index_t, float*) {};
    sinks_.compact(rows, exact), window_.compact(rows, exact);
    return coded_.compact(rows, [&](const PageRef& ref, index_t slot, float* row) {
      using Coder = prim::PageCodec<Cpu, typename Parts::Stored>;
      if (!has_lengths()) return Coder::decode(coded_.codec(), coded_.span(ref), slot, 1, {row, 1, coded_.dim()});
      float whole[max_head_dim];
      decode_run(coded_, ref, slot, {whole, 1, dim()}, nullptr);
      map_.forward({whole, 1, dim()});
      std::copy_n(whole, coded_.dim(), row);
    });
  }

  Status fork(Column& out) const {
    if (const Status s = sinks_.fork(out.sinks_); s != Status::ok) return s;
    if (const Status s = coded_.fork(out.coded_); s != Status::ok) return s;
    if (const Status s = map_.fork(out.map_); s != Status::ok) return s;
    return window_.fork(out.window_);
  }

  void clear() { sinks_.clear(), coded_.clear(), window_.clear(), map_.clear(); }

  /// rows[i] = the next out.rows slots as floats. `pages`: where they are read, if not where they lie.
  void decode(Cursor& at, prim::RowBlock<float> out, const PageProvider<Cpu>* pages = nullptr) const {
    index_t done = 0;
    walk(at, out.rows, [&](const auto& segment, const PageRef& ref, index_t first, index_t n, index_t live) {
      index_t i = first;
      if (live == n) {
        decode_run(segment, ref, i, {out.data + done * out.step, n, out.step}, pages);
        done += n;
        return;
      }
      for (; i < first + n; ++i)
        if (ref.alive(i)) decode_run(segment, ref, i, {out.data + done++ * out.step, 1, out.step}, pages);
    });
  }

  /// rows[i] = slot first + i. Pages before `first` are skipped, not read.
  void decode_from(index_t first, prim::RowBlock<float> out) const {
    Cursor at;
    skip(at, first);
    decode(at, out);
  }

  /// Moves on by `count` live slots: at once where no slot has left, else whole pages at a time.
  void skip(Cursor& at, index_t count) const {
    skip_pages(sinks_, 0, at, count), skip_pages(coded_, 1, at, count), skip_pages(window_, 2, at, count);
    walk(at, count, [](const auto&, const PageRef&, index_t, index_t, index_t) {});
  }

  /// Calls use(page) for the pages of the next `count` slots; a page may come twice in a row.
  template <class F>
  void each_page(Cursor& at, index_t count, F&& use) const {
    walk(at, count, [&](const auto& segment, const PageRef& ref, index_t, index_t, index_t) { use(segment.use_of(ref)); });
  }

  /// Bytes that slots [first, last) take as they are stored, without headers and tombstones.
  std::size_t slot_bytes(index_t first, index_t last) const {
    std::size_t sum = 0;
    const auto part = [&](const auto& segment) {
      const index_t from = std::clamp<index_t>(first, 0, segment.live()), to = std::clamp<index_t>(last, 0, segment.live());
      sum += static_cast<std::size_t>(to - from) * segment.page_payload() / static_cast<std::size_t>(segment.page_slots());
      first -= segment.live(), last -= segment.live();
    };
    part(sinks_), part(coded_), part(window_);
    return sum;
  }

  /// Numbers of a row of queries or of sums of values: one form, or two.
  index_t width() const { return map_.width(); }
  void begin_queries(prim::RowBlock<float> queries) const {
    if (map_.mapped() && coded_.live() > 0) map_.begin_queries(queries);
  }
  void finish_values(prim::RowBlock<float> sums) const {
    if (map_.mapped() && coded_.live() > 0) map_.finish_values(sums);
  }

  /// out[r][i] = queries[r] . (next slot i), for out of `count` columns. `then`: what is read after this column, if that is known.
  void scores(Cursor& at, index_t count, prim::RowBlock<const float> queries, prim::RowBlock<float> out,
              const PageProvider<Cpu>* from = nullptr, const Column* then = nullptr) const {
    float packed[max_page_slots * max_rows];
    const bool long_read = count >= max_page_slots;  // a stretch of many, behind which more will be read
    index_t done = 0;
    PieceList pieces;
    const auto read = [&](const auto& segment, const prim::RowBlock<float>& to) {
      if (pieces.all().empty()) return;
      prim::score_pieces<Cpu>(segment.codec(), pieces.all(), {queries.data + form(segment), queries.rows, queries.step}, to);
      for (const prim::PagePiece& p : pieces.all())
        if (mapped(segment)) map_.add_to_scores(queries, {to.data + p.at, to.rows, to.step}, p.count);
      pieces.clear();
    };
    walk(at, count, [&](const auto& segment, const PageRef& ref, index_t first, index_t n, index_t live) {
      const prim::PageSpan page = segment.span_then_next(ref, long_read ? segment.far_ahead() : done + live < count ? 1 : 0, from, likewise(segment, then));
      if (live == n && !owns_lengths(segment, ref)) {
        if (pieces.add({page, first, n, done})) read(segment, out);
        done += n;
        return;
      }
      read(segment, out);
      const prim::RowBlock<float> to = live == n ? prim::RowBlock<float>{out.data + done, queries.rows, out.step}
                                                 : prim::RowBlock<float>{packed, queries.rows, max_page_slots};
      pieces.add({page, first, n, 0});
      read(segment, to);
      if (owns_lengths(segment, ref)) own(ref).finish_scores(first, n, queries, to);
      for (index_t i = 0; live < n && i < n; ++i) {
        if (!ref.alive(first + i)) continue;
        for (index_t r = 0; r < queries.rows; ++r) out.data[r * out.step + done] = packed[r * max_page_slots + i];
        ++done;
      }
      if (live == n) done += n;
    }, [&](const auto& segment) { read(segment, out); });
  }

  /// out[r][:] += sum over the next `count` slots of weights[r][i] * slot i. `then`: as above.
  void accumulate(Cursor& at, index_t count, prim::RowBlock<const float> weights, prim::RowBlock<float> out,
                  const PageProvider<Cpu>* from = nullptr, const Column* then = nullptr) const {
    float spread[max_page_slots * max_rows], scaled[max_page_slots * max_rows];
    const bool long_read = count >= max_page_slots;  // a stretch of many, behind which more will be read
    index_t done = 0;
    PieceList pieces;
    const auto read = [&](const auto& segment, const prim::RowBlock<const float>& by) {
      if (pieces.all().empty()) return;
      prim::add_pieces<Cpu>(segment.codec(), pieces.all(), by, {out.data + form(segment), out.rows, out.step});
      for (const prim::PagePiece& p : pieces.all())
        if (mapped(segment)) map_.add_weights({by.data + p.at, by.rows, by.step}, out, p.count);
      pieces.clear();
    };
    walk(at, count, [&](const auto& segment, const PageRef& ref, index_t first, index_t n, index_t live) {
      const prim::PageSpan page = segment.span_then_next(ref, long_read ? segment.far_ahead() : done + live < count ? 1 : 0, from, likewise(segment, then));
      if (live == n && !owns_lengths(segment, ref)) {
        if (pieces.add({page, first, n, done})) read(segment, weights);
        done += n;
        return;
      }
      read(segment, weights);
      prim::RowBlock<const float> by{weights.data + done, weights.rows, weights.step};
      if (live != n) {
        index_t next = 0;
        for (index_t i = 0; i < n; ++i) {
          const bool alive = ref.alive(first + i);
          for (index_t r = 0; r < by.rows; ++r) spread[r * max_page_slots + i] = alive ? by.data[r * by.step + next] : 0.0f;
          next += alive;
        }
        by = {spread, by.rows, max_page_slots};
      }
      if (owns_lengths(segment, ref)) {
        own(ref).take_weights(first, n, by, {scaled, by.rows, max_page_slots}, out);
        by = {scaled, by.rows, max_page_slots};
      }
      pieces.add({page, first, n, 0});
      read(segment, by);
      done += live;
    }, [&](const auto& segment) { read(segment, weights); });
  }

  /// Query or weight rows that one call of `scores` or `accumulate` may bring.
  static constexpr index_t max_rows = 32;

 private:
  /// Once, from the `count` oldest slots of the window. After `reserve_flush`.
  void find_state(index_t count, float* rows, const prim::HeadQueries& queries) {
    const index_t step = scratch_rows(coded_.page_slots());
    map_.find(queries, [&](auto&& observe) {
      Cursor at{2, 0, 0};
      for (index_t done = 0; done < count; done += step) {
        const index_t n = std::min(step, count - done);
        decode(at, {rows, n, dim()});
        observe({rows, n, dim()});
      }
    });
  }

  /// Whether a segment holds mapped rows, and where the form that it understands begins in a row.
  template <class S>
  bool mapped(const S& segment) const {
    return map_.mapped() && static_cast<const void*>(&segment) == &coded_;
  }
  /// The segment of another column that stands where this one does here.
  template <class S>
  const S* likewise(const S& segment, const Column* other) const {
    if (other == nullptr) return nullptr;
    if constexpr (std::is_same_v<S, Coded>)
      if (&segment == &coded_) return &other->coded_;
    if constexpr (std::is_same_v<S, Exact>) return &segment == &sinks_ ? &other->sinks_ : &other->window_;
    return nullptr;
  }
  template <class S>
  bool owns_lengths(const S& segment, const PageRef& ref) const {
    return segment.shares(ref) && has_lengths();
  }
  template <class S>
  index_t form(const S& segment) const {
    return mapped(segment) ? dim() : 0;
  }

  template <class S>
  void decode_run(const S& segment, const PageRef& ref, index_t first, prim::RowBlock<float> out, const PageProvider<Cpu>* pages) const {
    using C = std::remove_cvref_t<decltype(segment.codec())>;
    prim::PageCodec<Cpu, C>::decode(segment.codec(), segment.span_then_next(ref, 0, pages), first, out.rows, out);
    if (mapped(segment)) map_.backward(out);
    if (owns_lengths(segment, ref)) own(ref).restore(first, out);
  }

  /// Calls use(segment, page, first, n, live) for the next `count` live slots, see `walk_segment`, and end(segment) where a segment ends.
  template <class F, class End = NoEnd>
  void walk(Cursor& at, index_t count, F&& use, End&& end = {}) const {
    const auto part = [&](const auto& segment) {
      count = walk_segment(segment, at, count, use);
      end(segment);
      if (count > 0) at = {at.segment + 1, 0, 0};
    };
    while (count > 0) {
      switch (at.segment) {
        case 0: part(sinks_); break;
        case 1: part(coded_); break;
        case 2: part(window_); break;
        default: return;
      }
    }
  }

  Exact sinks_;
  Coded coded_;
  Exact window_;
  RowMap<Transform> map_;
  std::int64_t fingerprint_ = 0;
  Flush flush_{};
  Together together_ = Together::alone;
};

}  // namespace kvcondense::cache
