#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/row_transform.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// How the scores of several query tokens become one.
enum class Aggregate : std::uint8_t { mean, max, sum, last };

/// One retrieval method as a value: which blocks it is made of. The cache keeps the index up to date in every step,
/// asks for units when `attend` is called, and attends exactly to their slots and to those that are kept.
///
/// Blocks, each a plain struct:
///   partition   size() -> index_t, origin() -> index_t    unit u is slots [origin + u size, origin + (u + 1) size)
///               partial() -> bool            whether a last unit that is not full competes
///               unread() -> index_t (may be left out)   last slots of a unit that are scored but not read
///   summary     size() -> index_t            slots of one row of the index: a unit's, a part of it, or several units'
///               plane_bytes(shape, plane) -> size_t   bytes of a row of the index
///               build<B>(HeadRows, first, last, UnitState&)   rows [first, last) from stored keys and values
///               width(shape) -> index_t      numbers of a prepared query
///               prepare<B>(view, kv_head, const float* query, float* out)
///               score<B>(view, kv_head, first, count, RowBlock<const float> queries, RowBlock<float> out)
///               read_bytes(shape, slots) -> size_t   of the index, to score so many slots
///               slots_scored() (may be left out)     scores units of one slot, whatever its rows are
///               found_floats(shape, slots) -> index_t, fits(shape, floats) -> bool, fit_queries() -> bool,
///               fit_bytes(shape, slots) -> size_t, fit<B>(HeadRows, PromptQueries, UnitState&, Scratch) (may be left out)
///                                            numbers that the step which ends the first prompt finds; there is no index before
///               fingerprint() -> int64_t (may be left out)   of the fields that say what those numbers mean
///               watch() -> Watch (may be left out)   attention that steps tell `UnitState::drawn`; only whole units behind its
///                                            window, where it has one, have rows, and compete
///               mean_value<B>(view, kv_head, float* out)     only with `select.shares()`
///   query       rows(group) -> index_t       query rows per KV head
///               floats(dim) -> index_t (may be left out)   numbers of one, if not dim
///               run<B>(view, token, kv_head, row, float* out)   one of them
///   scorer      run<B>(ctx, view, RaggedView<float> scores) -> Status     in place, over candidates of every row
///   aggregate   how the scores of several query tokens become one
///   reduce      rows(shape) -> index_t       rows of selection: one per KV head, or one per query head
///               run<B>(ctx, view, RaggedView<const float> scores, RaggedView<float> out) -> Status
///               unites() -> bool (may be left out)   choices per query head, read together per KV head
///   select      takes_all(view, kv_head, candidates) -> bool   known without a score
///               run<B>(ctx, view, RaggedView<const float> scores, const UnitLists&, Scratch&) -> Status
///               budget(view, kv_head) -> index_t (may be left out)   the most units of a row, where no score decides that
///               room(slots_since) -> index_t (may be left out)   lists are in the order of scores, and of their slots
///                                            only so many are read
///               biases() -> bool (may be left out)   gives chosen units something to add to their logits
///               shares() -> bool (may be left out)   mixes attention with the mean of all values
///   keep        of(view, kv_head) -> prim::Ends   slots that are read without competing
///   schedule    keeps() -> bool              whether a selection is read in later steps too; not with biases or shares
///               choosing() -> double         part of the steps of one token that choose anew
///               due(seen, tokens) -> bool    whether a call with these counters chooses anew
///               at_prompt_end() -> bool      whether the step that ends a prompt chooses, by its last query
template <class Partition, class Summary, class Query, class Scorer, class Reduce, class Select, class Keep, class Schedule>
struct Pipeline {
  Partition partition;
  Summary summary;
  Query query;
  Scorer scorer;
  Reduce reduce;
  Select select;
  Keep keep;
  Schedule schedule;
  Aggregate aggregate = Aggregate::mean;
  index_t dense_layers = 0;  ///< first layers that read every slot
  Positions positions = Positions::stored;
  index_t chunk = most_tokens;  ///< query tokens of a call up to which slots are chosen; a longer one reads all
  index_t dense_every = 0;      ///< layers whose number is a multiple of it read every slot; 0: no others
  index_t farthest = 0;         ///< with raw keys: slots farther from a query count as that far; 0: as far as they are

  static constexpr bool active() { return true; }
  bool reads_all(index_t layer) const { return layer < dense_layers || (dense_every > 0 && layer % dense_every == 0); }
  constexpr bool holds() const { return schedule.keeps(); }
  bool due(index_t seen, index_t tokens) const { return schedule.due(seen, tokens); }
  bool at_prompt_end() const { return schedule.at_prompt_end(); }
  /// Rows of what is read; there may be more of what is chosen.
  index_t rows(const CacheShape& shape) const { return unites() ? shape.kv_heads : reduce.rows(shape); }
  Positions read_at() const { return positions; }
  index_t longest_call() const { return chunk; }
  index_t reach() const { return farthest; }
  constexpr Watch watch() const {
    if constexpr (requires { summary.watch(); }) return summary.watch();
    else return {};
  }
  constexpr bool biases() const {
    if constexpr (requires { select.biases(); }) return select.biases();
    else return false;
  }
  constexpr bool shares() const {
    if constexpr (requires { select.shares(); }) return select.shares();
    else return false;
  }
  /// Whether these blocks can work together. What is held from call to call, or united over query heads, are units alone:
  /// neither what a selector adds to their logits nor what part of an output they are; and who shares needs a mean.
  constexpr bool composes() const {
    constexpr bool mean = requires(const Summary s, const ReadView<Cpu>& view, float* out) { s.template mean_value<Cpu>(view, index_t{}, out); };
    return !(biases() || shares()) || (!holds() && !unites() && (mean || !shares()));
  }
  template <Backend B>
  void mean_value(const ReadView<B>& view, index_t head, float* out) const {
    if constexpr (requires { summary.template mean_value<B>(view, head, out); }) summary.template mean_value<B>(view, head, out);
  }

  // ---- what a prompt teaches -----------------------------------------------------------------------

  static constexpr bool learns = requires(const Summary s, const CacheShape& shape) { s.found_floats(shape, index_t{}); };
  /// 0: nothing, ever.
  index_t found_floats(const CacheShape& shape, index_t slots) const {
    if constexpr (learns) return summary.found_floats(shape, slots);
    else return 0;
  }
  bool found_fits(const CacheShape& shape, index_t floats) const {
    if constexpr (learns) return floats == 0 || summary.fits(shape, floats);
    else return floats == 0;
  }
  constexpr bool fit_queries() const {
    if constexpr (learns) return summary.fit_queries();
    else return false;
  }
  std::size_t fit_bytes(const CacheShape& shape, index_t slots) const {
    if constexpr (learns) return summary.fit_bytes(shape, slots);
    else return 0;
  }
  template <Backend B>
  void fit(const HeadRows<B>& rows, const PromptQueries& queries, UnitState& state, const Scratch& scratch) const {
    if constexpr (learns) summary.template fit<B>(rows, queries, state, scratch);
  }

  /// Differs when what a snapshot keeps of the stage, found numbers and units that are held, means something else.
  std::int64_t fingerprint() const {
    std::int64_t f = 0;
    if constexpr (learns && requires { summary.fingerprint(); }) f = summary.fingerprint();
    return holds() ? prim::mix_fingerprints(prim::mix_fingerprints(f, partition.size()), partition.origin()) : f;
  }

  // ---- the index ---------------------------------------------------------------------------------

  index_t index_rows(index_t slots) const {
    const index_t n = slots - partition.origin();
    return n <= 0 ? 0 : (n + summary.size() - 1) / summary.size();
  }
  std::size_t index_row_bytes(const CacheShape& shape) const {
    std::size_t sum = 0;
    for (int p = 0; p < UnitState::planes; ++p) sum += summary.plane_bytes(shape, p);
    return sum;
  }
  Status reserve(const CacheShape& shape, index_t slots, UnitState& state) const {
    const index_t rows = index_rows(slots);
    Status s = Status::ok;
    for (int p = 0; s == Status::ok && p < UnitState::planes; ++p)
      s = state.plane[p].reserve(rows * static_cast<index_t>(summary.plane_bytes(shape, p)));
    return s;
  }
  /// Makes the rows of all slots from `from` on anew. After `reserve`: cannot fail.
  template <Backend B>
  void refresh(const HeadRows<B>& rows, index_t from, UnitState& state) const {
    if (found_floats(*rows.shape, rows.slots) > 0 && state.found.empty()) return state.clear();
    const index_t window = watch().window, behind = rows.slots - window - partition.origin();
    const index_t now = window == 0 ? index_rows(rows.slots) : std::max<index_t>(0, behind) / summary.size();
    const index_t first = std::clamp<index_t>((std::min(from, state.covered - window) - partition.origin()) / summary.size(), 0, now);
    for (int p = 0; p < UnitState::planes; ++p) {
      const auto bytes = static_cast<index_t>(summary.plane_bytes(*rows.shape, p));
      if (state.plane[p].size() > now * bytes) state.plane[p].shrink(now * bytes);
      (void)state.plane[p].resize(now * bytes);
    }
    summary.template build<B>(rows, partition.origin(), first, now, state);
    state.covered = rows.slots;
  }

  /// The most units that a head of so many slots can have.
  index_t most_units(index_t slots) const { return slots / partition.size() + 1; }

  // ---- which units ------------------------------------------------------------------------------

  index_t unit_begin(index_t unit) const { return partition.origin() + unit * partition.size(); }

  /// Units that compete in a head; all slots in front of them and behind are read.
  template <Backend B>
  UnitRange candidates(const ReadView<B>& view, index_t head) const {
    const index_t n = view.known[head] - watch().window, size = partition.size();
    prim::Ends ends = keep.of(view, head).within(view.slots[head]);
    const index_t last = std::min(n, view.slots[head] - ends.suffix) - partition.origin();
    const index_t prefix = ends.prefix - partition.origin();
    const index_t first = prefix <= 0 ? 0 : (prefix + size - 1) / size;
    const index_t end = last <= 0 ? 0 : partition.partial() ? (last + size - 1) / size : last / size;
    return {first, std::max(first, end)};
  }

  /// Whether nothing needs to be scored, since every slot is read.
  template <Backend B>
  bool takes_all(const ReadView<B>& view) const {
    for (index_t h = 0; h < view.heads(); ++h)
      if (const UnitRange c = candidates(view, h); c.size() > 0 && !select.takes_all(view, h, c.size())) return false;
    return true;
  }

  std::size_t workspace_bytes(const CacheShape& shape, index_t slots, index_t tokens) const {
    const index_t q_rows = shape.kv_heads * query.rows(shape.group()), all = reduce.rows(shape);
    const index_t most = slots / partition.size() + 2;
    const std::size_t unions = unites() ? Scratch::bytes_for<std::int32_t>(all * most) + Scratch::bytes_for<index_t>(all) : 0;
    const std::size_t scores = 3 * Scratch::bytes_for<float>(q_rows * most) + Scratch::bytes_for<float>(all * most);
    const std::size_t index_scores = Scratch::bytes_for<float>(q_rows * (index_rows(slots) + 1));
    return scores + index_scores + 2 * Scratch::bytes_for<index_t>(q_rows + all + 2) +
           Scratch::bytes_for<float>(q_rows * summary.width(shape)) + Scratch::bytes_for<float>(q_rows * query_floats(shape.head_dim)) + unions +
           select.workspace_bytes(shape, most, tokens);
  }

  /// Scores the candidates of every head and chooses among them. `offset` of the lists says how many there are.
  template <Backend B>
  Status choose(Context<B>& ctx, const ReadView<B>& view, const UnitLists& lists, ReadCounts* counts,
                Scratch scratch) const {
    const CacheShape& shape = view.shape;
    const index_t per_head = query.rows(shape.group()), q_rows = shape.kv_heads * per_head, all = reduce.rows(shape);
    auto* offset = scratch.take<index_t>(q_rows + 1);
    auto* row_offset = scratch.take<index_t>(all + 1);
    if (offset == nullptr || row_offset == nullptr) return Status::workspace_too_small;
    offset[0] = row_offset[0] = 0;
    for (index_t r = 0; r < q_rows; ++r) offset[r + 1] = offset[r] + candidates(view, r / per_head).size();
    for (index_t r = 0; r < all; ++r) row_offset[r + 1] = row_offset[r] + candidates(view, r * shape.kv_heads / all).size();
    const index_t total = offset[q_rows], width = summary.width(shape), dim = query_floats(shape.head_dim);
    RaggedView<float> sum{scratch.take<float>(total), offset, q_rows};
    RaggedView<float> one = view.tokens == 1 ? sum : RaggedView<float>{scratch.take<float>(total), offset, q_rows};
    RaggedView<float> out{scratch.take<float>(row_offset[all]), row_offset, all};
    float* prepared = scratch.take<float>(q_rows * width);
    float* plain = scratch.take<float>(q_rows * dim);
    float* parts = parts_per_unit() == 1 ? sum.data : scratch.take<float>(most_parts(view) * q_rows);
    if (sum.data == nullptr || one.data == nullptr || out.data == nullptr || prepared == nullptr || plain == nullptr || parts == nullptr)
      return Status::workspace_too_small;

    const bool last_only = aggregate == Aggregate::last;
    for (index_t t = last_only ? view.tokens - 1 : 0; t < view.tokens; ++t) {
      const bool begins = last_only || t == 0;
      ctx.parallel(shape.kv_heads, [&](index_t h, index_t) {
        if (candidates(view, h).size() == 0) return;  // there may be no index of this head
        float* q = prepared + h * per_head * width;
        for (index_t r = 0; r < per_head; ++r) {
          float* p = plain + (h * per_head + r) * dim;
          query.template run<B>(view, t, h, r, p);
          summary.template prepare<B>(view, h, p, q + r * width);
        }
        score_head<B>(view, h, {q, per_head, width}, begins ? sum : one, parts + h * per_head * (parts_per_unit() == 1 ? 0 : most_parts(view)));
      });
      if (const Status s = scorer.run(ctx, view, begins ? sum : one); s != Status::ok) return s;
      if (!begins)
        for (index_t i = 0; i < total; ++i) {
          if (aggregate == Aggregate::max) sum.data[i] = one.data[i] > sum.data[i] ? one.data[i] : sum.data[i];
          else sum.data[i] += one.data[i];
        }
      if (counts != nullptr) count_scored(view, begins ? sum : one, *counts);
    }
    if (aggregate == Aggregate::mean && view.tokens > 1)
      for (index_t i = 0; i < total; ++i) sum.data[i] /= static_cast<float>(view.tokens);
    if (const Status s = reduce.run(ctx, view, RaggedView<const float>(sum), out); s != Status::ok) return s;
    UnitLists chosen = lists;
    if (unites()) {
      chosen.units = {scratch.take<std::int32_t>(row_offset[all]), row_offset, all};
      chosen.count = scratch.take<index_t>(all);
      if (chosen.units.data == nullptr || chosen.count == nullptr) return Status::workspace_too_small;
    }
    if (const Status s = select.run(ctx, view, RaggedView<const float>(out), chosen, scratch); s != Status::ok) return s;
    if (unites()) unite(chosen, lists, shape.kv_heads);
    for (index_t r = 0; r < rows(shape); ++r) {
      const auto first = static_cast<std::int32_t>(candidates(view, r * shape.kv_heads / rows(shape)).first);
      for (index_t i = 0; i < lists.count[r]; ++i) lists.units.row(r)[i] += first;
    }
    return Status::ok;
  }

  // ---- which slots ------------------------------------------------------------------------------

  /// The slots that a row of selection reads: its units, and what is kept. `since`: slots that came after the units
  /// were chosen. Writes at most list + 2 runs, returns how many.
  template <Backend B>
  index_t runs(const ReadView<B>& view, index_t head, UnitRange among, const std::int32_t* units, index_t count, index_t since,
               std::int32_t* sorted, SlotRun* out) const {
    index_t n = 0;
    const auto add = [&](index_t first, index_t last) {
      first = std::max<index_t>(first, n == 0 ? 0 : out[n - 1].last);
      if (first >= last) return;
      if (n > 0 && out[n - 1].last == first) out[n - 1].last = static_cast<std::int32_t>(last);
      else out[n++] = {static_cast<std::int32_t>(first), static_cast<std::int32_t>(last)};
    };
    const index_t slots = view.slots[head], tail = std::min({slots, view.known[head], unit_begin(among.last)});
    std::copy_n(units, count, sorted);
    index_t cut_unit = -1, cut = 0;
    if constexpr (requires { select.room(since); }) {
      // In the order of scores: the last ones make room for what came since.
      index_t room = select.room(since), take = 0;
      for (; take < count && room > 0; ++take) {
        const index_t size = std::min(partition.size(), slots - unit_begin(units[take]));
        if (size > room) cut_unit = units[take], cut = room;
        room -= std::min(room, size);
      }
      count = take;
      std::sort(sorted, sorted + count);
    }
    add(0, std::min(slots, unit_begin(among.first)));
    for (index_t i = 0; i < count; ++i) {
      const index_t begin = unit_begin(sorted[i]), size = sorted[i] == cut_unit ? cut : partition.size() - unread();
      add(begin, std::min(slots, begin + size));
    }
    add(tail, slots);
    return n;
  }
  /// The bias of every slot of some runs: that of its unit, or 0. Units ascend.
  void spread_bias(const std::int32_t* units, const float* bias, index_t count, const SlotRun* runs, index_t run_count, float* out) const {
    index_t u = 0;
    for (index_t i = 0; i < run_count; ++i)
      for (index_t slot = runs[i].first; slot < runs[i].last; ++slot) {
        while (u < count && unit_begin(units[u]) + partition.size() <= slot) ++u;
        *out++ = u < count && unit_begin(units[u]) <= slot ? bias[u] : 0.0f;
      }
  }

 private:
  /// A walk leaves what it did not see at -inf.
  template <Backend B>
  void count_scored(const ReadView<B>& view, RaggedView<const float> scores, ReadCounts& counts) const {
    const index_t per_head = scores.heads / view.heads();
    for (index_t h = 0; h < view.heads(); ++h) {
      index_t units = scores.length(h * per_head) * per_head, slots = scores.length(h * per_head) * partition.size();
      if constexpr (requires { summary.walks(); }) {
        units = 0;
        for (index_t r = h * per_head; r < (h + 1) * per_head; ++r)
          for (index_t i = 0; i < scores.length(r); ++i) units += scores.row(r)[i] > -std::numeric_limits<float>::infinity();
        slots = units;
      }
      counts.units_scored += units;
      counts.index_bytes += summary.read_bytes(view.shape, slots);
    }
  }

  constexpr index_t unread() const {
    if constexpr (requires { partition.unread(); }) return partition.unread();
    else return 0;
  }
  constexpr bool unites() const {
    if constexpr (requires { reduce.unites(); }) return reduce.unites();
    else return false;
  }
  index_t query_floats(index_t dim) const {
    if constexpr (requires { query.floats(dim); }) return query.floats(dim);
    else return dim;
  }

  /// Rows of the index in a unit; 1 where a row is a unit or more.
  index_t parts_per_unit() const { return std::max<index_t>(1, partition.size() / summary.size()); }
  index_t units_per_row() const { return std::max<index_t>(1, summary.size() / partition.size()); }
  template <Backend B>
  index_t most_parts(const ReadView<B>& view) const {
    index_t most = 0;
    for (index_t h = 0; h < view.heads(); ++h) most = std::max(most, index_rows(view.known[h]));
    return most;
  }

  template <Backend B>
  void score_head(const ReadView<B>& view, index_t head, prim::RowBlock<const float> queries, RaggedView<float> out,
                  float* parts) const {
    const UnitRange c = candidates(view, head);
    if (c.size() == 0) return;
    const index_t per_unit = parts_per_unit(), per_row = units_per_row();
    float* to = out.row(head * queries.rows);
    if constexpr (requires { summary.slots_scored(); }) {  // scores slots, whatever its rows are
      summary.template score<B>(view, head, c.first, c.size(), queries, {to, queries.rows, c.size()});
    } else if (per_unit == 1 && per_row == 1) {
      summary.template score<B>(view, head, c.first, c.size(), queries, {to, queries.rows, c.size()});
    } else if (per_unit > 1) {  // the largest of a unit's parts
      const index_t first = c.first * per_unit, last = std::min(index_rows(view.known[head]), c.last * per_unit), n = last - first;
      summary.template score<B>(view, head, first, n, queries, {parts, queries.rows, n});
      for (index_t r = 0; r < queries.rows; ++r)
        for (index_t u = 0; u < c.size(); ++u) {
          float best = parts[r * n + u * per_unit];
          for (index_t i = u * per_unit + 1; i < std::min(n, (u + 1) * per_unit); ++i)
            best = parts[r * n + i] > best ? parts[r * n + i] : best;
          to[r * c.size() + u] = best;
        }
    } else {  // every unit of a row has the row's score
      const index_t first = c.first / per_row, n = (c.last + per_row - 1) / per_row - first;
      summary.template score<B>(view, head, first, n, queries, {to, queries.rows, c.size()});
      for (index_t r = 0; r < queries.rows; ++r)
        for (index_t u = c.size() - 1; u >= 0; --u)
          to[r * c.size() + u] = to[r * c.size() + (c.first + u) / per_row - first];
    }
  }
};

template <class P, class Su, class Q, class Sc, class R, class Se, class K, class Sd, class... Rest>
Pipeline(P, Su, Q, Sc, R, Se, K, Sd, Rest...) -> Pipeline<P, Su, Q, Sc, R, Se, K, Sd>;

}  // namespace kvcondense::retrieve
