#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <type_traits>

#include <kvcondense/backend/cpu/attend.hpp>
#include <kvcondense/backend/cpu/paged_rows.hpp>
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/cache/row_map.hpp>
#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/external/borrowed.hpp>

namespace kvcondense::external {

/// Pages for codes of one layer in an engine's memory, beside those of its exact rows. Head h of page p has its keys at keys + p *
/// key_step + h * CodedPages::key_bytes(), values alike; all of them multiples of 64 bytes.
struct CodedMemory {
  BorrowedLayer exact;  ///< by place, see CodedPages::place; entries of pages that hold no exact row may be anything
  std::byte* keys = nullptr;
  std::byte* values = nullptr;
  index_t key_step = 0;
  index_t value_step = 0;
  std::span<const std::int32_t> table{};  ///< pages of codes
  index_t pool_pages = 0;
  std::span<std::int64_t> formats{};        ///< of each page what it holds: CodedPages::format(), something else, or 0: nothing
  std::span<const std::int32_t> owners{};   ///< as in BorrowedLayer
};

/// Stores one sequence's layer with a quant stage in pages that an engine owns, and attends over them as they are.
///
/// Idea     the stage's rule says which slots of the exact window are due; their codes go into pages of the engine's pool, heads
///          beside each other, and attention reads sinks, codes and window in one softmax. Every page carries the id of its
///          format, so that a page of another form, or of another setting, is never read as codes.
/// Source   the stages' own; pages as vLLM's blocks.
/// Needs    what the stage needs; rows of new tokens in the exact pages, at the places that `place` names.
/// Shapes   pages of `page_slots`, a multiple of the slots that share parameters; all heads hold the same slots.
///          Slots leave by `keep` alone: there is neither truncate nor fork, codes cannot become exact rows again.
/// Cost     a page takes heads * (key_bytes() + value_bytes()) bytes. Attention decodes nothing, as in a Cache.
/// Numbers  codes and attention of a Cache with the same stage and page size, bit for bit.
/// Errors   make: what the stage says; invalid_argument: page_slots that groups do not divide; not_supported: stages found from the
///          sequence (smooth_attention) or that tell slots apart (mikv, zipcache), heads with other flush rules.
///          Calls: as check(); incompatible: a page of another format; invalid_argument: steps or addresses that are no multiples of
///          64, a shared page that would be written; not_supported: slots that share parameters leave alone.
///          Nothing has changed then.
template <class Q>
class CodedPages {
  using KeyCodec = std::remove_cvref_t<decltype(key_codec_of(std::declval<const Q&>(), CacheShape{}))>;
  using ValueCodec = std::remove_cvref_t<decltype(value_codec_of(std::declval<const Q&>(), CacheShape{}))>;
  template <class C>
  struct Side {
    using Parts = prim::CodecParts<C>;
    using Stored = typename Parts::Stored;
    C whole{};
    cache::RowMap<typename Parts::Transform> map;
    bool of_values = false;
    decltype(auto) stored() const { return Parts::stored(whole); }
  };

 public:
  static constexpr std::size_t align = 64;

  static Expected<CodedPages> make(const CacheShape& shape, const Q& quant, index_t page_slots, index_t layer = 0,
                                   MemoryResource<Cpu>& memory = heap_memory()) {
    if (const Status s = validate(shape); s != Status::ok) return s;
    if (const Status s = quant.validate(shape); s != Status::ok) return s;
    if (page_slots < 1 || page_slots > 65536 || layer < 0) return Status::invalid_argument;
    if (has_saliency(quant)) return Status::not_supported;
    CodedPages c;
    c.shape_ = shape, c.page_slots_ = page_slots, c.most_sinks_ = quant.sinks;
    if (shape.softmax_scale == 0.0f) c.shape_.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    c.key_flush_ = key_flush_of(quant, shape, {layer, 0}), c.value_flush_ = value_flush_of(quant, shape, {layer, 0});
    Status failed = Status::ok;
    std::int64_t format = page_slots;
    for (const index_t n : {shape.kv_heads, shape.head_dim, shape.values()}) format = prim::mix_fingerprints(format, n);
    const Status made = c.heads_.fill(memory, shape.kv_heads, [&](index_t h) {
      const HeadIndex at{layer, h};
      Head head;
      const auto side = [&](auto& s, const auto& codec, index_t dim, bool of_values) {
        using S = std::remove_cvref_t<decltype(s)>;
        s.whole = codec, s.of_values = of_values;
        s.map = decltype(s.map)(S::Parts::transform(codec), dim, memory);
        if (s.map.state_floats() > 0) failed = Status::not_supported;
        if (page_slots % s.stored().group_slots() != 0) failed = Status::invalid_argument;
        format = prim::mix_fingerprints(format, prim::mix_fingerprints(fingerprint(s.map.transform()), s.stored().fingerprint()));
      };
      side(head.keys, key_codec_of(quant, shape, at), shape.head_dim, false);
      side(head.values, value_codec_of(quant, shape, at), shape.values(), true);
      if (!(key_flush_of(quant, shape, at) == c.key_flush_) || !(value_flush_of(quant, shape, at) == c.value_flush_)) failed = Status::not_supported;
      return head;
    });
    if (made != Status::ok) return made;
    if (failed != Status::ok) return failed;
    c.format_ = format == 0 ? 1 : format;
    return c;
  }

  /// Of one head in one page.
  index_t key_bytes() const { return bytes_of(&Head::keys, shape_.head_dim); }
  index_t value_bytes() const { return bytes_of(&Head::values, shape_.values()); }
  std::int64_t format() const { return format_; }

  index_t slots() const { return slots_; }
  index_t sinks() const { return sinks_; }
  index_t coded_keys() const { return keys_; }
  index_t coded_values() const { return values_; }
  index_t pages() const { return pages_for(std::max(keys_, values_)); }
  /// Where the exact row of a slot lies: slot place(s) of the exact table. New tokens come to place(slots()) and on.
  index_t place(index_t slot) const { return slot < sinks_ ? slot : slot + shift_; }
  /// Places from sinks() to here hold no exact row any more: the engine may take whole pages of them.
  index_t window_begin() const { return sinks_ + std::min(keys_, values_) + shift_; }

  /// `pool_pages`: of the larger pool.
  std::size_t workspace_bytes(index_t slots, index_t queries, index_t pool_pages, index_t workers = 1) const {
    const index_t dim = std::max(shape_.head_dim, shape_.values());
    const std::size_t attend = prim::Attend<Cpu>::workspace_bytes(workers, shape_.kv_heads, shape_.group() * queries, slots, query_width(),
                                                                  value_width(), true);
    return Scratch::align + Scratch::bytes_for<std::uint64_t>((pool_pages + 63) / 64) + std::max(attend, static_cast<std::size_t>(workers) * Scratch::bytes_for<float>(page_slots_ * dim)) +
           Scratch::bytes_for<index_t>(shape_.kv_heads);
  }

  /// `tokens` exact rows were written at place(slots()) and on.
  Status append(index_t tokens) {
    if (tokens < 0 || tokens > 0x7fffffff - seen_) return Status::out_of_range;
    if (slots_ == seen_) sinks_ += std::clamp<index_t>(most_sinks_ - seen_, 0, tokens);
    slots_ += tokens, seen_ += tokens;
    return Status::ok;
  }
  /// Pages of codes that `code` needs in all.
  index_t pages_wanted() const { return pages_for(std::max(keys_ + due(key_flush_, keys_), values_ + due(value_flush_, values_))); }

  /// Codes what the stage's rule says is due. Whole exact pages between sinks() and window_begin() are free afterwards.
  Status code(Context<Cpu>& ctx, const CodedMemory& m, index_t* repaired = nullptr);

  /// Attention of the newest queries over all slots; see prim::AttendRequest for mass.
  Status attend(Context<Cpu>& ctx, const CodedMemory& m, prim::AttendRequest request) const {
    const index_t n = request.queries.extent[1], heads = shape_.kv_heads;
    if (request.queries.extent[0] != shape_.q_heads || request.queries.extent[2] != shape_.head_dim || request.out.extent[0] != shape_.q_heads ||
        request.out.extent[1] != n || request.out.extent[2] != shape_.values())
      return Status::shape_mismatch;
    if (request.lse.data != nullptr && (request.lse.extent[0] != shape_.q_heads || request.lse.extent[1] != n)) return Status::shape_mismatch;
    if (request.mass.data != nullptr && request.mass.heads != heads) return Status::shape_mismatch;
    for (index_t h = 0; h < heads && request.mass.data != nullptr; ++h)
      if (request.mass.length(h) != slots_) return Status::shape_mismatch;
    if (n > std::max<index_t>(1, slots_)) return Status::out_of_range;
    Scratch scratch(ctx.workspace());
    if (const Status s = check_memory(m, pages(), scratch); s != Status::ok) return s;
    const prim::PagedSequence sequence = m.exact.sequence(nullptr);
    request.softmax_scale = shape_.softmax_scale;
    return prim::Attend<Cpu>::run(ctx, request, heads, [&](index_t h) { return Reader{this, &m, &sequence, h}; });
  }

  /// Whether memory is what these pages need, as every call asks.
  Status check(const CodedMemory& m, Scratch scratch) const { return check_memory(m, pages(), scratch); }
  const CacheShape& shape() const { return shape_; }
  /// A head as `prim::Attend<Cpu>` reads it; the sequence is that of the exact pages.
  auto reader(const CodedMemory& m, const prim::PagedSequence& sequence, index_t head) const { return Reader{this, &m, &sequence, head}; }
  /// Rows of slots [first, first + out.rows) as floats.
  void read(const CodedMemory& m, index_t head, bool values, index_t first, prim::RowBlock<float> out) const {
    if (values) decode(m, head, heads_[head].values, m.exact.values, values_, first, out);
    else decode(m, head, heads_[head].keys, m.exact.keys, keys_, first, out);
  }

  /// Keeps these slots in all heads; ascending. Codes that have parameters of their own move to the front; where slots share
  /// parameters whole pages stay or leave, and `table` (the engine's, which m.table views) is put in order: pages that stay come
  /// first, those behind are free. Exact rows move to the front of sinks and window.
  Status keep(Context<Cpu>& ctx, const CodedMemory& m, std::span<const std::int32_t> kept, std::span<std::int32_t> table);

 private:
  struct Head {
    Side<KeyCodec> keys;
    Side<ValueCodec> values;
  };
  /// A head as `prim::Attend<Cpu>` reads it.
  struct Reader {
    /// A slot.
    struct Cursor {
      index_t at = 0;
    };
    const CodedPages* of;
    const CodedMemory* m;
    const prim::PagedSequence* sequence;
    index_t head;

    index_t slots() const { return of->slots_; }
    prim::SlotScalars scalars() const { return {}; }
    void seek(Cursor& key, Cursor& value, index_t slot) const { key.at = value.at = slot; }
    void prepare_query(float*, index_t, index_t) const {}
    index_t query_width() const { return of->heads_[head].keys.map.width(); }
    index_t value_width() const { return of->heads_[head].values.map.width(); }
    void begin_queries(prim::RowBlock<float> q) const {
      if (of->keys_ > 0 && of->heads_[head].keys.map.mapped()) of->heads_[head].keys.map.begin_queries(q);
    }
    void finish_values(prim::RowBlock<float> sums) const {
      if (of->values_ > 0 && of->heads_[head].values.map.mapped()) of->heads_[head].values.map.finish_values(sums);
    }
    void key_scores(Cursor& at, index_t n, prim::RowBlock<const float> queries, prim::RowBlock<float> out, index_t) const {
      const auto& side = of->heads_[head].keys;
      const index_t dim = sequence->keys.dim, form = side.map.mapped() ? dim : 0;
      walk(at, n, of->keys_, [&](bool coded, index_t place, index_t done, index_t count) {
        const prim::RowBlock<float> to{out.data + done, out.rows, out.step};
        if (!coded)
          return prim::cpu::for_paged_tiles(*sequence, sequence->keys, head, place, count, [&](const float* tile, index_t i, index_t k) {
            prim::cpu::dot_rows(tile, k, dim, queries, {to.data + i, to.rows, to.step});
          });
        Page<decltype(side)>::scores(side.stored(), of->span(*m, head, side, place), place % of->page_slots_, count,
                                     {queries.data + form, queries.rows, queries.step}, to);
        if (form > 0) side.map.add_to_scores(queries, to, count);
      });
    }
    void add_values(Cursor& at, index_t n, prim::RowBlock<const float> weights, prim::RowBlock<float> out) const {
      const auto& side = of->heads_[head].values;
      const index_t dim = sequence->values.dim, form = side.map.mapped() ? dim : 0;
      walk(at, n, of->values_, [&](bool coded, index_t place, index_t done, index_t count) {
        const prim::RowBlock<const float> w{weights.data + done, weights.rows, weights.step};
        if (!coded)
          return prim::cpu::for_paged_tiles(*sequence, sequence->values, head, place, count, [&](const float* tile, index_t i, index_t k) {
            prim::cpu::add_rows(tile, k, dim, {w.data + i, w.rows, w.step}, out);
          });
        Page<decltype(side)>::accumulate(side.stored(), of->span(*m, head, side, place), place % of->page_slots_, count, w,
                                         {out.data + form, out.rows, out.step});
        if (form > 0) side.map.add_weights(w, out, count);
      });
    }

   private:
    template <class S>
    using Page = prim::PageCodec<Cpu, typename std::remove_cvref_t<S>::Stored>;

    /// Calls use(coded, place, done, count) for pieces of sinks, pages of codes and window.
    template <class Use>
    void walk(Cursor& at, index_t n, index_t coded, Use&& use) const {
      const index_t sinks = of->sinks_;
      for (index_t done = 0; done < n;) {
        const index_t c = at.at - sinks, left = n - done;
        index_t count = left;
        if (c < 0) {
          count = std::min(left, -c);
          use(false, at.at, done, count);
        } else if (c < coded) {
          count = std::min({left, coded - c, of->page_slots_ - c % of->page_slots_});
          use(true, c, done, count);
        } else {
          use(false, of->place(at.at), done, count);
        }
        at.at += count, done += count;
      }
    }
  };

  template <class T>
  static std::int64_t fingerprint(const T& transform) {
    return transform.fingerprint();
  }
  template <class S>
  static bool movable(const S& side) {
    return side.stored().group_slots() == 1 && requires { &prim::PageCodec<Cpu, typename S::Stored>::move; };
  }
  template <class S>
  index_t bytes_of(S Head::* side, index_t dim) const {
    std::size_t most = 0;
    for (const Head& h : heads_) most = std::max(most, (h.*side).stored().page_bytes(page_slots_, (h.*side).map.transform().stored_dim(dim)));
    return static_cast<index_t>((most + align - 1) / align * align);
  }
  index_t query_width() const {
    index_t n = 0;
    for (const Head& h : heads_) n = std::max(n, h.keys.map.width());
    return n;
  }
  index_t value_width() const {
    index_t n = 0;
    for (const Head& h : heads_) n = std::max(n, h.values.map.width());
    return n;
  }
  index_t pages_for(index_t coded) const { return (coded + page_slots_ - 1) / page_slots_; }
  index_t due(const Flush& rule, index_t coded) const { return due_of(rule, slots_ - sinks_ - coded, coded > 0); }
  bool shared(const CodedMemory& m, index_t p) const {
    return !m.owners.empty() && m.owners[static_cast<std::size_t>(m.table[static_cast<std::size_t>(p)])] > 1;
  }

  /// `wanted`: pages of codes that the table must have; those in use are of this format, others hold nothing.
  Status check_memory(const CodedMemory& m, index_t wanted, Scratch scratch) const;

  template <class S>
  prim::PageSpan span(const CodedMemory& m, index_t h, const S& side, index_t c) const {
    const index_t page = m.table[static_cast<std::size_t>(c / page_slots_)];
    std::byte* at = side.of_values ? m.values + page * m.value_step + h * value_bytes() : m.keys + page * m.key_step + h * key_bytes();
    return {at, page_slots_, side.map.transform().stored_dim(side.of_values ? shape_.values() : shape_.head_dim)};
  }

  template <class S>
  void decode(const CodedMemory& m, index_t h, const S& side, const prim::PagedTensor& t, index_t coded, index_t first, prim::RowBlock<float> out) const {
    const prim::PagedSequence s = m.exact.sequence(nullptr);
    for (index_t i = 0; i < out.rows; ++i) {
      const index_t c = first + i - sinks_, at = place(first + i);
      float* row = out.data + i * out.step;
      if (c < 0 || c >= coded) {
        prim::cpu::read_paged(t, s.page(at), h, at % s.page_slots, row);
        continue;
      }
      prim::PageCodec<Cpu, typename S::Stored>::decode(side.stored(), span(m, h, side, c), c % page_slots_, 1, {row, 1, t.dim});
      if (side.map.mapped()) side.map.backward({row, 1, t.dim});
    }
  }
  template <class S>
  index_t encode(const CodedMemory& m, index_t h, const S& side, const prim::PagedTensor& t, index_t first, index_t count, float* rows) {
    index_t repaired = 0;
    const prim::PagedSequence s = m.exact.sequence(nullptr);
    for (index_t c = first; c < first + count;) {
      const index_t n = std::min(first + count - c, page_slots_ - c % page_slots_);
      for (index_t i = 0; i < n; ++i) {
        const index_t at = place(sinks_ + c + i);
        prim::cpu::read_paged(t, s.page(at), h, at % s.page_slots, rows + i * t.dim);
      }
      side.map.forward({rows, n, t.dim});
      repaired += prim::PageCodec<Cpu, typename S::Stored>::encode(side.stored(), span(m, h, side, c), c % page_slots_, n, {rows, n, t.dim});
      c += n;
    }
    return repaired;
  }
  template <class S>
  void move_code(const CodedMemory& m, index_t h, const S& side, index_t to, index_t from) {
    if constexpr (requires { &prim::PageCodec<Cpu, typename S::Stored>::move; })
      if (to != from)
        prim::PageCodec<Cpu, typename S::Stored>::move(side.stored(), span(m, h, side, to), to % page_slots_, span(m, h, side, from), from % page_slots_);
  }

  CacheShape shape_{};
  ObjectArray<Head> heads_;
  Flush key_flush_{}, value_flush_{};
  index_t page_slots_ = 0, most_sinks_ = 0;
  std::int64_t format_ = 1;
  index_t slots_ = 0, seen_ = 0, sinks_ = 0, keys_ = 0, values_ = 0;
  index_t shift_ = 0;  ///< from a slot of the window to its place
};

}  // namespace kvcondense::external

#include <kvcondense/external/coded_pages_impl.hpp>
