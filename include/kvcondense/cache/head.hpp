#pragma once

#include <algorithm>
#include <utility>

#include <kvcondense/cache/column.hpp>
#include <kvcondense/cache/counters.hpp>
#include <kvcondense/cache/kept.hpp>
#include <kvcondense/cache/open_slot.hpp>
#include <kvcondense/cache/slot_ids.hpp>
#include <kvcondense/cache/summary.hpp>

namespace kvcondense::cache {

/// What every head of a cache has in common.
struct HeadPlan {
  prim::ExactRows exact{};
  index_t sinks = 0;
  index_t head_dim = 0;
  index_t value_dim = 0;
  index_t page_slots = 0;
  index_t lanes = 0;
  index_t query_rows = 0;  ///< queries of earlier tokens that a layer keeps
  bool summary = false;    ///< slots that leave live on in a mean
  index_t bias = -1;        ///< lane of logit biases; -1: none
  index_t value_scale = -1; ///< lane of what values are multiplied by; -1: none
  index_t state = 0;        ///< numbers per head that a merge stage keeps
  bool joins = false;       ///< tokens may join the newest slot
  bool indexed = false;    ///< a retrieval stage has an index per head
  bool learns = false;     ///< a retrieval stage finds numbers when a prompt ends
  index_t drawn = 0;       ///< numbers per slot that a retrieval stage is told of attention
  index_t held_rows = 0;   ///< rows of selection that last longer than a call

  // Found from the codecs of all heads.
  index_t query_width = 0;    ///< of a row of queries, see Column
  index_t value_width = 0;
  index_t commit_floats = 0;  ///< scratch of one worker
  index_t across_floats = 0;  ///< the same, of what layers store together
  bool lossy = false;         ///< some head codes slots
  bool codec_queries = false; ///< some transform is found from queries
};

/// How one head stores what left its exact window.
template <class KeyCodec, class ValueCodec>
struct HeadCodecs {
  KeyCodec key{};
  ValueCodec value{};
  Flush key_flush{};
  Flush value_flush{};
  Together together = Together::alone;

  bool valid(const HeadPlan& p) const {
    return key.valid(p.head_dim) && value.valid(p.value_dim) &&
           Column<KeyCodec>::coded_page_slots(key, p.page_slots) <= max_page_slots &&
           Column<ValueCodec>::coded_page_slots(value, p.page_slots) <= max_page_slots;
  }
};

/// All slots of one KV head of one layer: two columns, and everything that belongs to a slot.
/// Whatever moves slots moves all of it by the same list.
template <class KeyCodec, class ValueCodec>
struct Head {
  using Plan = HeadPlan;
  using Codecs = HeadCodecs<KeyCodec, ValueCodec>;

  Column<KeyCodec> keys;
  Column<ValueCodec> values;
  SlotIds ids;
  Buffer<float> lane[max_lanes];
  Buffer<float> state;      ///< a merge stage's
  OpenSlot open;            ///< the newest slot, where tokens may join it
  Summary summary;          ///< of slots that left; empty unless the plan says so
  index_t lanes = 0;
  index_t bias = -1, value_scale = -1;  ///< lanes that attention reads
  index_t repaired = 0;     ///< numbers that codecs replaced
  index_t coded_again = 0;  ///< slots written anew because their group lost members
  index_t same = 0;         ///< slots in front of it are stored as the index of the head saw them

  Head(const Plan& p, const Codecs& c, MemoryResource<Cpu>& memory)
      : keys(p.exact, c.key, c.key_flush, p.sinks, p.head_dim, p.page_slots, memory, c.together),
        values(p.exact, c.value, c.value_flush, p.sinks, p.value_dim, p.page_slots, memory, c.together),
        ids(memory),
        state(memory),
        lanes(p.lanes),
        bias(p.bias),
        value_scale(p.value_scale) {
    for (auto& l : lane) l = Buffer<float>(memory);
    if (p.joins) open = OpenSlot(p.head_dim, p.value_dim, memory);
  }

  index_t slots() const { return ids.size(); }

  /// Whether the slot behind it holds what it held: only newest tokens see it.
  bool passed_on(index_t slot) const {
    const index_t next = slot + 1 - first_open();
    return next >= 0 && next < open.pending() && open.joined(next) && (next > 0 || ids[slot] == open.token());
  }
  /// The first slot of tokens that may have joined another.
  index_t first_open() const { return slots() - open.pending(); }

  /// Whoever writes, moves or drops stored keys or values says from which slot on.
  void changed(index_t slot) { same = std::min(same, slot); }

  /// Whether both write the same bytes for the same slots.
  bool stored_like(const Head& o) const {
    return keys.fingerprint() == o.keys.fingerprint() && values.fingerprint() == o.values.fingerprint() &&
           keys.flush_rule() == o.keys.flush_rule() && values.flush_rule() == o.values.flush_rule();
  }

  /// Room for `sinks + window` more slots; on refusal the head is as before.
  Status reserve(index_t first_token, index_t sinks, index_t window) {
    const index_t n = sinks + window;
    Status s = ids.gap_before(first_token) ? ids.list_with_room(n) : ids.reserve(n);
    for (index_t l = 0; s == Status::ok && l < lanes; ++l) s = lane[l].reserve(lane[l].size() + n);
    if (s == Status::ok) s = keys.reserve(sinks, window);
    if (s == Status::ok) s = values.reserve(sinks, window);
    if (s == Status::ok) s = open.reserve(n);
    if (s != Status::ok) trim();
    return s;
  }
  void trim() { keys.trim(), values.trim(); }

  /// After `reserve`, once per appended run and after its rows entered the columns.
  void count(index_t first_token, index_t n) {
    ids.append(first_token, n);
    for (index_t l = 0; l < lanes; ++l)
      for (index_t i = 0; i < n; ++i) lane[l].append_reserved(l == value_scale ? 1.0f : 0.0f);
  }

  /// Whether `commit` will code slots when `kept` survives.
  bool flushes(const Kept& kept) const {
    return keys.most_due(window_after(keys, kept)) > 0 || values.most_due(window_after(values, kept)) > 0;
  }

  /// Room with which `reserve_commit` cannot fail, whatever survives. `leave`: whether any slots may leave.
  Status reserve_any_commit(bool leave) {
    Status s = leave ? ids.reserve_list() : Status::ok;
    if (s == Status::ok) s = keys.reserve_flush(keys.most_due(keys.window().live()));
    if (s == Status::ok) s = values.reserve_flush(values.most_due(values.window().live()));
    return s;
  }
  /// Room for everything `commit` may need when `kept` survives.
  Status reserve_commit(const Kept& kept) {
    if (kept.size() < slots())
      if (const Status s = ids.reserve_list(); s != Status::ok) return s;
    Status s = keys.reserve_due(window_after(keys, kept));
    if (s == Status::ok) s = values.reserve_due(window_after(values, kept));
    if (s != Status::ok) trim();
    return s;
  }

  /// What a commit has done besides.
  struct Done {
    index_t repaired = 0;
    index_t coded_again = 0;
  };

  /// Keeps these slots, codes what the flush rules say, gives room back. Cannot fail. Lanes have the numbers of what is
  /// kept in front already. `scores`: null, or one per slot that is kept. `queries`: of this step, where there are any.
  /// `to`: null, or where slots folded to.
  Done commit(const Kept& kept, float* rows, const float* scores = nullptr,
              const prim::HeadQueries& queries = {}, const std::int32_t* to = nullptr) {
    if (summary.kept()) summary.absorb(keys, values, slots(), kept, to);
    drop_others(kept);
    Done done;
    // What is coded now, and what is coded again, is no longer what an index saw.
    const bool codes = keys.due(keys.window().live()) > 0, values_too = values.due(values.window().live()) > 0;
    if (codes) changed(keys.sinks().live() + keys.coded().live());
    if (values_too) changed(values.sinks().live() + values.coded().live());
    done.repaired = keys.flush(keys.due(keys.window().live()), rows, scores, queries);
    done.repaired += values.flush(values.due(values.window().live()), rows, scores, queries);
    done.coded_again = compact(rows);
    return done;
  }

  /// Gives room back; returns how many slots were coded again.
  index_t compact(float* rows) {
    const index_t again = keys.compact(rows) + values.compact(rows);
    if (again > 0) changed(0);
    return again;
  }

  /// Keeps these slots and does nothing else: no flush, no move.
  void keep_slots(const Kept& kept) {
    if (kept.size() == slots()) return;
    for (index_t l = 0; l < lanes; ++l) gather_down(lane[l].data(), kept);
    drop_others(kept);
  }

  void pop_back(index_t n) {
    if (n == 0) return;
    keys.pop_back(n);
    values.pop_back(n);
    ids.pop_back(n);
    changed(slots());
    for (index_t l = 0; l < lanes; ++l) lane[l].shrink(lane[l].size() - n);
    give_back();
  }

  Status fork(Head& out) const {
    Status s = keys.fork(out.keys);
    if (s == Status::ok) s = values.fork(out.values);
    if (s == Status::ok) s = ids.fork(out.ids);
    for (index_t l = 0; s == Status::ok && l < lanes; ++l) s = out.lane[l].copy_from(lane[l]);
    if (s == Status::ok) s = out.state.copy_from(state);
    if (s == Status::ok) s = open.fork(out.open);
    if (summary.kept()) summary.fork(out.summary);
    out.repaired = repaired, out.coded_again = coded_again, out.same = same;
    return s;
  }

  void clear() {
    keys.clear(), values.clear(), ids.clear();
    for (auto& l : lane) l.shrink(0);
    summary.clear();
    open.clear();
    std::fill(state.begin(), state.end(), 0.0f);
    repaired = coded_again = same = 0;
  }

  std::size_t side_bytes() const {
    std::size_t sum = summary.bytes() + open.bytes() + state.bytes() + ids.bytes() + keys.table_bytes() + values.table_bytes();
    for (const auto& l : lane) sum += l.bytes();
    return sum;
  }

  /// Floats of scratch that `commit` needs.
  index_t scratch() const { return std::max(keys.scratch(), values.scratch()); }

 private:
  void drop_others(const Kept& kept) {
    if (kept.size() == slots()) return;
    changed(kept.first_gap());
    keys.keep(kept);
    values.keep(kept);
    ids.keep(kept);
    for (index_t l = 0; l < lanes; ++l) lane[l].shrink(kept.size());
    give_back();
  }
  /// Tables of a prompt that is mostly gone.
  void give_back() {
    ids.give_back(), keys.give_back(), values.give_back();
    for (index_t l = 0; l < lanes; ++l) lane[l].give_back(lane[l].size());
  }

  template <class C>
  static index_t window_after(const C& column, const Kept& kept) {
    if (kept.size() == column.slots()) return column.window().live();  // no list needed
    return kept.size() - kept.below(column.sinks().live() + column.coded().live());
  }
};

}  // namespace kvcondense::cache
