#pragma once

#include <algorithm>

#include <kvcondense/cache/head_reader.hpp>
#include <kvcondense/core/slot_runs.hpp>

namespace kvcondense::cache {

/// Some of a head's slots as `prim::Attend<Cpu>` reads a head: the slots of ascending runs, one behind another, in the
/// form in which they are stored. The last `tokens` slots of the head belong to the queries, as ever.
template <class H>
struct RunReader {
  /// A place in the runs.
  struct Cursor {
    cache::Cursor at;
    index_t slot = 0;  ///< at which `at` stands
    index_t run = 0;
    index_t done = 0;  ///< slots of that run
  };

  HeadReader<H> head;
  const SlotRun* runs = nullptr;
  index_t count = 0;   ///< of runs
  index_t total = 0;   ///< slots of all runs
  index_t tokens = 1;  ///< query tokens of the call
  bool compact = false;  ///< raw keys turn by their place in the list instead of by their slot
  prim::SlotScalars own{};  ///< of the listed slots

  index_t slots() const { return total; }
  prim::SummarySlot summary() const { return head.summary(); }
  prim::SlotScalars scalars() const { return own; }
  index_t query_width() const { return head.query_width(); }
  index_t value_width() const { return head.value_width(); }
  void begin_queries(prim::RowBlock<float> queries) const { head.begin_queries(queries); }
  void finish_values(prim::RowBlock<float> sums) const { head.finish_values(sums); }

  void prepare_query(float* q, index_t token, index_t slot) const {
    head.prepare_query(q, token, compact ? slot : head.slots() - tokens + token);
  }

  void hide(index_t visible, index_t first, index_t n, float* logits) const {
    if (head.head->open.pending() == 0) return;
    // From the end: slots that may have been passed on are the newest.
    for (index_t r = count, end = total; r-- > 0 && runs[r].last >= head.head->first_open(); end -= runs[r].size()) {
      const index_t begin = end - runs[r].size(), shift = runs[r].first - begin;
      const index_t from = std::max(begin, first), to = std::min(end, first + n);
      if (from < to) head.hide(visible + shift, from + shift, to - from, logits + from - first);
    }
  }

  void key_scores(Cursor& at, index_t n, prim::RowBlock<const float> queries, prim::RowBlock<float> out, index_t first) const {
    walk(head.head->keys, at, n, [&](index_t done, index_t m, index_t slot) {
      head.key_scores(at.at, m, queries, {out.data + done, out.rows, out.step}, compact ? first + done : slot);
    });
  }
  void add_values(Cursor& at, index_t n, prim::RowBlock<const float> weights, prim::RowBlock<float> out) const {
    walk(head.head->values, at, n, [&](index_t done, index_t m, index_t) {
      head.add_values(at.at, m, {weights.data + done, weights.rows, weights.step}, out);
    });
  }

 private:
  /// Calls use(slots before, slots, first slot of the head) for pieces of runs that hold the next n slots.
  template <class Column, class Use>
  void walk(const Column& column, Cursor& at, index_t n, Use&& use) const {
    for (index_t i = 0; i < n;) {
      const SlotRun& run = runs[at.run];
      const index_t slot = run.first + at.done, m = std::min(n - i, run.last - slot);
      if (slot != at.slot) column.skip(at.at, slot - at.slot);
      use(i, m, slot);
      at.slot = slot + m;
      at.done += m;
      if (at.done == run.size()) ++at.run, at.done = 0;
      i += m;
    }
  }
};

}  // namespace kvcondense::cache
