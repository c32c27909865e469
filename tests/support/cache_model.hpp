#pragma once

#include <algorithm>
#include <map>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/byte_list.hpp>
#include <support/memory.hpp>
#include <support/naive_cache.hpp>
#include <support/step_data.hpp>

namespace kvcondense::test {

/// Drives a cache and a naive twin with the same calls and compares after each.
///
/// The twin never decides what leaves: it checks that the cache's slots are tokens it held before, in
/// order, that no call but `step` loses one it should not, that stored numbers stay within
/// `most_error` of what was appended, and that attention equals double attention over what is stored. Where a merge
/// stage runs, a step in which slots left may give others new rows: the twin takes those over, and they have to stay.
template <class R>
class CacheModel {
 public:
  CacheModel(const CacheShape& shape, const R& recipe, std::uint32_t seed, double most_error, double attend_error = 0.0)
      : shape_(shape), recipe_(recipe), naive_(shape), random_(seed), most_error_(most_error), attend_error_(attend_error) {
    auto made = make_cache<Cpu>(shape, recipe, memory_);
    REQUIRE(made.status() == Status::ok);
    cache_ = std::move(*made);
    REQUIRE(work_.reserve(cache_.workspace_bytes(4096, 96)) == Status::ok);
    ctx_ = Context<Cpu>(work_.bytes());
  }

  Cache<Cpu, R>& cache() { return cache_; }
  CountingMemory& memory() { return memory_; }
  std::mt19937& random() { return random_; }
  const std::string& calls() const { return calls_; }
  index_t draw(index_t lo, index_t hi) { return std::uniform_int_distribution<index_t>(lo, hi)(random_); }

  /// One forward pass of `n` tokens through every layer; drafts are not stepped.
  void forward(index_t n, bool draft = false) {
    calls_ += (draft ? " draft(" : " forward(") + std::to_string(n) + ")";
    const index_t first = naive_.seen;
    for (index_t l = 0; l < shape_.layers; ++l) {
      const Tokens t(shape_, n, random_);
      REQUIRE(cache_.append(ctx_, l, t.keys(shape_), t.values(shape_), {}, t.queries(shape_)) == Status::ok);
      naive_.append(l, t, first);
      if (unrotates())
        for (index_t h = 0; h < shape_.kv_heads; ++h)
          for (std::size_t i = naive_.head(l, h).size() - static_cast<std::size_t>(n); i < naive_.head(l, h).size(); ++i)
            rotate(naive_.head(l, h)[i].k, -naive_.head(l, h)[i].token);
      take_joined(l, n);
      queries_.resize(static_cast<std::size_t>(shape_.layers));
      keep_queries(l, t);
      std::vector<float> mass(static_cast<std::size_t>(cache_.total_slots(l)));
      const RaggedView<float> view = cache_.ragged(l, mass.data());
      attend(l, t, view);
      if (draft) continue;
      // Long chunks pass for prompts, so that what acts at their end acts again and again.
      const std::vector<float> queries = pending_queries(l);
      const StepData data(shape_, cache_.pending(l), random_);
      StepInputs inputs = data.inputs({view, cache_.mass_rows(n)});
      inputs.queries = dense_view(queries.data(), shape_.q_heads, cache_.pending(l), shape_.head_dim);
      REQUIRE(cache_.step(ctx_, l, inputs, n > 40 ? Phase::prefill_end : Phase::automatic) == Status::ok);
      sync(l);
    }
    naive_.seen += n;
    check();
  }

  /// Room for a turn.
  void turn(index_t incoming) {
    calls_ += " turn(" + std::to_string(incoming) + ")";
    REQUIRE(cache_.turn(ctx_, incoming) == (cache_.pending() > 0 ? Status::order_violation : Status::ok));
    for (index_t l = 0; l < shape_.layers; ++l) sync(l);
    check();
  }

  /// Tokens that only ask about earlier ones, and are taken back.
  void probe(index_t n) {
    calls_ += " probe(" + std::to_string(n) + ")";
    const index_t length = cache_.length();
    if (cache_.pending() > 0 || length == 0) return;
    const index_t first = draw(0, length - 1), last = draw(first + 1, length);
    for (index_t l = 0; l < shape_.layers; ++l) {
      const Tokens t(shape_, n, random_);
      REQUIRE(cache_.append(ctx_, l, t.keys(shape_), t.values(shape_), {}, t.queries(shape_)) == Status::ok);
      const StepInputs inputs{.queries = t.queries(shape_), .probe_first = first, .probe_last = last};
      REQUIRE(cache_.step(ctx_, l, inputs, Phase::probe) == Status::ok);
      REQUIRE(cache_.pending(l) == n);
    }
    REQUIRE(cache_.truncate(length) == Status::ok);
    check();
  }

  void truncate(index_t tokens) {
    for (auto& list : queries_)  // of drafts that are taken back
      list.resize(list.size() - std::min(list.size(), static_cast<std::size_t>(naive_.seen - tokens)));
    calls_ += " truncate(" + std::to_string(tokens) + ")";
    REQUIRE(cache_.truncate(tokens) == Status::ok);
    erase(tokens, naive_.seen);
    naive_.seen = tokens;
    for (index_t l = 0; l < shape_.layers; ++l)  // a mean forgets nobody, but it counts no more than there were
      for (index_t h = 0; h < shape_.kv_heads; ++h)
        gone(l, h).token = std::min(gone(l, h).token, tokens - cache_.slots(l, h));
    check();
  }

  void remove(index_t first, index_t last) {
    calls_ += " remove(" + std::to_string(first) + "," + std::to_string(last) + ")";
    if (cache_.pending() > 0) {  // drafts must be stepped or taken back first
      REQUIRE(cache_.remove(ctx_, first, last) == Status::order_violation);
      return;
    }
    REQUIRE(cache_.remove(ctx_, first, last) == Status::ok);
    erase(first, last);
    check();
  }

  void reset() {
    calls_ += " reset";
    cache_.reset();
    erase(0, naive_.seen);
    naive_.seen = 0;
    gone_.clear();
    check();
  }

  /// Goes on with what a file of the cache says.
  void become_loaded() {
    calls_ += " load";
    ByteList file;
    REQUIRE(save(cache_, file) == Status::ok);
    auto fresh = make_cache<Cpu>(shape_, recipe_, memory_);
    REQUIRE(fresh.status() == Status::ok);
    REQUIRE(load(*fresh, file.bytes) == Status::ok);
    check_equal(*fresh);
    cache_ = std::move(*fresh);
    check();
  }

  /// Goes on as the second of two beams, both of which come from the first.
  void become_beam() {
    calls_ += " reorder";
    {
      auto copy = cache_.fork();
      REQUIRE(copy.status() == Status::ok);
      Cache<Cpu, R> beams[] = {std::move(cache_), std::move(*copy)};
      const index_t from[] = {1, 0};
      REQUIRE(reorder(std::span<Cache<Cpu, R>>(beams), from) == Status::ok);
      cache_ = std::move(beams[1]);
    }
    check();
  }

  /// Goes on with a fork; the original is dropped, so shared pages become this cache's own.
  void become_fork() {
    calls_ += " fork";
    auto copy = cache_.fork();
    REQUIRE(copy.status() == Status::ok);
    check_equal(*copy);
    cache_ = std::move(*copy);
    check();
  }

  void check() {
    for (index_t l = 0; l < shape_.layers; ++l)
      for (index_t h = 0; h < shape_.kv_heads; ++h) check_head(l, h);
    check_index();
    REQUIRE(cache_.report().bytes() == memory_.live_bytes);
    REQUIRE(memory_.wrong_releases == 0);
  }

  void check_equal(const Cache<Cpu, R>& other) {
    for (index_t l = 0; l < shape_.layers; ++l)
      for (index_t h = 0; h < shape_.kv_heads; ++h) {
        REQUIRE(other.slots(l, h) == cache_.slots(l, h));
        REQUIRE(rows(other, l, h) == rows(cache_, l, h));
      }
  }

  /// Everything a head stores, decoded: keys then values.
  std::vector<float> rows(const Cache<Cpu, R>& c, index_t l, index_t h) const {
    const index_t n = c.slots(l, h);
    std::vector<float> out(static_cast<std::size_t>(n * (shape_.head_dim + shape_.values())));
    REQUIRE(c.read(l, h, 0, dense_view(out.data(), n, shape_.head_dim),
                   dense_view(out.data() + n * shape_.head_dim, n, shape_.values())) == Status::ok);
    return out;
  }

 private:
  /// The queries of the tokens that no step has seen yet, and of some before them.
  void keep_queries(index_t l, const Tokens& t) {
    auto& list = queries_[static_cast<std::size_t>(l)];
    for (index_t i = 0; i < t.n; ++i) {
      std::vector<float>& row = list.emplace_back();
      for (index_t h = 0; h < shape_.q_heads; ++h)
        for (index_t d = 0; d < shape_.head_dim; ++d) row.push_back(t.queries(shape_)(h, i, d));
    }
  }
  std::vector<float> pending_queries(index_t l) const {
    const auto& list = queries_[static_cast<std::size_t>(l)];
    const index_t n = cache_.pending(l), first = static_cast<index_t>(list.size()) - n;
    std::vector<float> all;
    for (index_t h = 0; h < shape_.q_heads; ++h)
      for (index_t i = first; i < first + n; ++i) {
        const float* row = list[static_cast<std::size_t>(i)].data() + h * shape_.head_dim;
        all.insert(all.end(), row, row + shape_.head_dim);
      }
    return all;
  }
  /// The mean of what left a head in steps; its `token` is their number.
  NaiveSlot& gone(index_t l, index_t h) { return gone_[l * shape_.kv_heads + h]; }
  void leaves(NaiveSlot& mean, const NaiveSlot& slot) {
    const double part = 1.0 / static_cast<double>(++mean.token);
    mean.k.resize(slot.k.size()), mean.v.resize(slot.v.size());
    for (std::size_t d = 0; d < slot.k.size(); ++d) mean.k[d] += (slot.k[d] - mean.k[d]) * part;
    for (std::size_t d = 0; d < slot.v.size(); ++d) mean.v[d] += (slot.v[d] - mean.v[d]) * part;
  }

  /// Engine gives rotated keys, cache stores them without rotation.
  bool unrotates() const { return cache_.capabilities().raw_keys && cache_.capabilities().rotated_input; }

  /// Half-split RoPE of base 10000, in double, as the formula stands.
  static void rotate(std::vector<double>& x, index_t position) {
    static std::map<std::pair<std::size_t, index_t>, std::vector<std::pair<double, double>>> known;  // cos and sin, by size and position
    const std::size_t pairs = x.size() / 2;
    auto& turns = known[{x.size(), position}];
    if (turns.empty()) {
      const double ratio = std::pow(10000.0, -2.0 / static_cast<double>(x.size()));
      turns.reserve(pairs);
      for (double angle = static_cast<double>(position); turns.size() < pairs; angle *= ratio) turns.emplace_back(std::cos(angle), std::sin(angle));
    }
    for (std::size_t i = 0; i < pairs; ++i) {
      const double a = x[i], b = x[i + pairs];
      x[i] = a * turns[i].first - b * turns[i].second;
      x[i + pairs] = b * turns[i].first + a * turns[i].second;
    }
  }

  void erase(index_t first, index_t last) {
    for (auto& layer : naive_.slots)
      for (auto& head : layer)
        std::erase_if(head, [&](const NaiveSlot& s) { return s.token >= first && s.token < last; });
  }

  /// The twin forgets what the step evicted; what is left must be an ascending part of what was there.
  void sync(index_t l) {
    for (index_t h = 0; h < shape_.kv_heads; ++h) {
      std::vector<NaiveSlot>& held = naive_.head(l, h);
      std::vector<NaiveSlot> kept;
      std::size_t at = 0;
      for (index_t i = 0; i < cache_.slots(l, h); ++i) {
        const index_t token = cache_.token(l, h, i);
        while (at < held.size() && held[at].token != token) leaves(gone(l, h), held[at++]);
        REQUIRE(at < held.size());
        kept.push_back(held[at++]);
      }
      while (at < held.size()) leaves(gone(l, h), held[at++]);
      const bool left = kept.size() < held.size();
      held = kept;
      if (left && merges()) take_over(l, h);
      const cache::Summary& summary = cache_.layers()[l].heads[h].summary;
      if (!summary.kept() || !merges()) continue;
      // What folded is not in the mean; which slots did, the twin does not know.
      REQUIRE(summary.count() <= gone(l, h).token);
      const float* mean = summary.data();
      gone(l, h) = {summary.count(), {mean, mean + shape_.head_dim}, {mean + shape_.head_dim, mean + summary.size()}};
    }
  }

  /// Where tokens join slots before they are attended, a slot comes as the sum that it is then.
  void take_joined(index_t l, index_t n) {
    for (index_t h = 0; h < shape_.kv_heads && cache_.capabilities().joins_tokens; ++h) {
      const std::vector<float> got = rows(cache_, l, h);
      auto& slots = naive_.head(l, h);
      const auto count = static_cast<index_t>(slots.size());
      for (index_t i = count - n; i < count; ++i) {
        const float *k = got.data() + i * shape_.head_dim, *v = got.data() + count * shape_.head_dim + i * shape_.values();
        slots[static_cast<std::size_t>(i)].k.assign(k, k + shape_.head_dim), slots[static_cast<std::size_t>(i)].v.assign(v, v + shape_.values());
      }
    }
  }
  /// A query without the component that decided what it counts.
  void clear_control(std::vector<double>& q, index_t position) const {
    const bool raw = cache_.capabilities().raw_keys, turned = cache_.capabilities().rotated_input;
    if (!cache_.capabilities().joins_tokens) return;
    if (turned) rotate(q, -position);
    q.back() = 0;
    if (turned) rotate(q, position);
    if (!raw) q.back() = 0;
  }

  bool merges() const { return cache_.report().merged_slots > 0; }
  void take_over(index_t l, index_t h) {
    const std::vector<float> got = rows(cache_, l, h);
    std::size_t i = 0;
    for (NaiveSlot& slot : naive_.head(l, h)) {
      const float* k = got.data() + i * static_cast<std::size_t>(shape_.head_dim);
      const float* v = got.data() + naive_.head(l, h).size() * static_cast<std::size_t>(shape_.head_dim) +
                       i++ * static_cast<std::size_t>(shape_.values());
      double worst = 0;
      for (std::size_t d = 0; d < slot.k.size(); ++d) worst = larger(worst, k[d] - slot.k[d]);
      for (std::size_t d = 0; d < slot.v.size(); ++d) worst = larger(worst, v[d] - slot.v[d]);
      REQUIRE(worst < 1e4);
      if (worst <= most_error_ / 2) continue;  // the other half is what coding it may add
      slot.k.assign(k, k + slot.k.size()), slot.v.assign(v, v + slot.v.size());
    }
  }

  void check_head(index_t l, index_t h) {
    INFO(calls_);
    const std::vector<NaiveSlot>& want = naive_.head(l, h);
    const index_t n = cache_.slots(l, h);
    REQUIRE(n == static_cast<index_t>(want.size()));
    const std::vector<float> got = rows(cache_, l, h);
    double worst = 0;
    index_t wrong_tokens = 0;
    for (index_t i = 0; i < n; ++i) {
      const NaiveSlot& slot = want[static_cast<std::size_t>(i)];
      wrong_tokens += cache_.token(l, h, i) != slot.token;
      for (index_t d = 0; d < shape_.head_dim; ++d)
        worst = larger(worst, got[static_cast<std::size_t>(i * shape_.head_dim + d)] - slot.k[static_cast<std::size_t>(d)]);
      for (index_t d = 0; d < shape_.values(); ++d)
        worst = larger(worst, got[static_cast<std::size_t>(n * shape_.head_dim + i * shape_.values() + d)] -
                                  slot.v[static_cast<std::size_t>(d)]);
    }
    const cache::Summary& summary = cache_.layers()[l].heads[h].summary;
    if (summary.kept()) {
      REQUIRE(summary.count() == gone(l, h).token);
      for (index_t d = 0; summary.count() > 0 && d < shape_.head_dim; ++d)
        worst = larger(worst, summary.slot().key[d] - gone(l, h).k[static_cast<std::size_t>(d)]);
      for (index_t d = 0; summary.count() > 0 && d < shape_.values(); ++d)
        worst = larger(worst, summary.slot().value[d] - gone(l, h).v[static_cast<std::size_t>(d)]);
    }
    REQUIRE(wrong_tokens == 0);
    REQUIRE(worst <= most_error_);
  }

  void attend(index_t l, const Tokens& t, RaggedView<float> mass) {
    INFO(calls_);
    std::vector<float> out(static_cast<std::size_t>(shape_.q_heads * t.n * shape_.values()), -7.0f);
    std::vector<float> lse(static_cast<std::size_t>(shape_.q_heads * t.n));
    index_t room = 1;
    for (index_t h = 0; h < shape_.kv_heads; ++h) room = std::max(room, cache_.slots(l, h) / 2 + 1);
    std::vector<SlotRun> runs(static_cast<std::size_t>(shape_.q_heads * room));
    std::vector<index_t> run_count(static_cast<std::size_t>(shape_.q_heads));
    ReadCounts reads;
    const Status status = cache_.attend(ctx_, l, t.queries(shape_), dense_view(out.data(), shape_.q_heads, t.n, shape_.values()),
                                        {.mass = mass,
                                         .lse = dense_view(lse.data(), shape_.q_heads, t.n),
                                         .reads = &reads,
                                         .runs = {runs.data(), room, run_count.data()}});
    const double scale = 1.0 / std::sqrt(static_cast<double>(shape_.head_dim));
    bool compact = false, mixes = false, weighs = false, once = false;
    index_t reach = 0;
    if constexpr (Cache<Cpu, R>::may_retrieve)
      if (cache_.retrieval().active()) {
        compact = cache_.capabilities().raw_keys && cache_.retrieval().read_at() == retrieve::Positions::compact;
        reach = cache_.capabilities().raw_keys ? cache_.retrieval().reach() : 0;
        once = compact || reach > 0 || cache_.retrieval().watch().anew();
        mixes = cache_.retrieval().shares(), weighs = cache_.retrieval().biases() && reads.units_scored > 0;
      }
    if (once && status == Status::not_supported) {  // one list for all heads, where no slot is the same in all
      bool differ = false;
      for (index_t h = 1; h < shape_.kv_heads; ++h) differ = differ || cache_.slots(l, h) != cache_.slots(l, 0);
      REQUIRE(differ);
      std::fill_n(mass.data, mass.size(), 0.0f);
      return;
    }
    REQUIRE(status == Status::ok);
    for (index_t h = 0; h < shape_.kv_heads; ++h) {
      const index_t n = cache_.slots(l, h);
      const std::vector<float> stored = rows(cache_, l, h);
      // A logit with ln N added is N slots alike.
      const cache::Summary& summary = cache_.layers()[l].heads[h].summary;
      const prim::SummarySlot mean = summary.kept() ? summary.slot() : prim::SummarySlot{};
      const index_t alike = mean.key == nullptr ? 0 : summary.count();
      std::vector<NaiveSlot> slots(static_cast<std::size_t>(n + alike));
      for (index_t i = n; i < n + alike; ++i)
        slots[static_cast<std::size_t>(i)] = {0, {mean.key, mean.key + shape_.head_dim}, {mean.value, mean.value + shape_.values()}};
      std::rotate(slots.begin(), slots.begin() + n, slots.end());
      for (index_t i = 0; i < n; ++i) {
        const float* k = stored.data() + i * shape_.head_dim;
        const float* v = stored.data() + n * shape_.head_dim + i * shape_.values();
        slots[static_cast<std::size_t>(alike + i)] = {0, {k, k + shape_.head_dim}, {v, v + shape_.values()}};
        const auto& head = cache_.layers()[l].heads[h];
        if (head.bias >= 0) slots[static_cast<std::size_t>(alike + i)].bias = head.lane[head.bias][i];
        if (head.value_scale >= 0) slots[static_cast<std::size_t>(alike + i)].value_scale = head.lane[head.value_scale][i];
        if (cache_.capabilities().raw_keys && !compact && reach == 0) rotate(slots[static_cast<std::size_t>(i)].k, i);
      }
      std::vector<double> want_mass(static_cast<std::size_t>(n + alike), 0.0);
      for (index_t g = 0; g < shape_.group(); ++g) {
        const index_t qh = h * shape_.group() + g;
        const std::vector<index_t> listed = listed_slots(runs.data() + qh * room, run_count[static_cast<std::size_t>(qh)], n, t.n, l);
        std::vector<NaiveSlot> read(slots.begin(), slots.begin() + alike);
        for (const index_t j : listed) read.push_back(slots[static_cast<std::size_t>(alike + j)]);
        for (std::size_t j = 0; compact && j < read.size(); ++j) rotate(read[j].k, static_cast<index_t>(j));
        const bool all = static_cast<index_t>(listed.size()) == n;
        std::vector<double> read_mass(read.size(), 0.0);
        for (index_t i = 0; i < t.n; ++i) {
          std::vector<double> q;
          for (index_t d = 0; d < shape_.head_dim; ++d) q.push_back(t.queries(shape_)(qh, i, d));
          clear_control(q, naive_.seen + i);
          const index_t visible = n - t.n + i + 1, place = static_cast<index_t>(listed.size()) - t.n + i;
          if (cache_.capabilities().raw_keys)
            rotate(q, (compact ? place : visible - 1) - (unrotates() ? naive_.seen + i : 0));
          double want_lse = 0;
          const bool counted = i >= t.n - cache_.mass_rows(t.n);
          const index_t sees = std::lower_bound(listed.begin(), listed.end(), visible) - listed.begin();
          // A copy only where this row sees other slots than its neighbours do.
          const auto& head = cache_.layers()[l].heads[h];
          const auto passed = [&](index_t slot) { return slot + 1 < visible && head.passed_on(slot); };
          const bool differs = reach > 0 || std::any_of(listed.begin(), listed.end(), passed);
          std::vector<NaiveSlot> own;
          if (differs) own = read;
          for (std::size_t j = 0; differs && j < listed.size(); ++j)
            if (passed(listed[j])) own[static_cast<std::size_t>(alike) + j].bias = -INFINITY;
          for (std::size_t j = 0; reach > 0 && j < own.size(); ++j) rotate(own[j].k, std::max(listed[j], visible - 1 - reach));
          const std::vector<NaiveSlot>& seen = differs ? own : read;
          const auto want = naive_attention(q, seen, sees + alike, scale, static_cast<std::size_t>(shape_.values()),
                                            counted ? &read_mass : nullptr, &want_lse);
          double worst = 0;
          const float* got = out.data() + (qh * t.n + i) * shape_.values();
          for (index_t d = 0; d < shape_.values(); ++d)
            if (!mixes || all) worst = larger(worst, got[d] - want[static_cast<std::size_t>(d)]);
          if (mixes && !all) worst = larger(worst, off_line(got, want, std::span(slots).subspan(static_cast<std::size_t>(alike))));
          if (weighs) {  // by chances that this twin does not know
            for (index_t d = 0; d < shape_.values(); ++d) REQUIRE(std::isfinite(got[d]));
            continue;
          }
          worst = larger(worst, lse[static_cast<std::size_t>(qh * t.n + i)] - want_lse);
          REQUIRE(worst < bound());
        }
        for (std::size_t j = 0; j < listed.size(); ++j)
          want_mass[static_cast<std::size_t>(alike + listed[j])] += read_mass[static_cast<std::size_t>(alike) + j];
      }
      double worst = 0;
      for (index_t j = 0; j < n && !weighs; ++j) {  // sums over rows and heads: the more there are, the longer is what they round to
        const double want = want_mass[static_cast<std::size_t>(alike + j)];
        worst = larger(worst, (static_cast<double>(mass.row(h)[j]) - want) / (1 + want));
      }
      REQUIRE(worst < 3 * bound());
    }
  }

  /// Of outputs and lse. Where codes are multiplied as they are stored, multipliers are rounded to 1 / 32512 of the largest.
  double bound() const { return std::max(attend_error_, cache_.capabilities().lossy_slots && prim::cpu::code_ops() != nullptr ? 4e-4 : 3e-5); }

  /// The slots that a query head read: ascending runs with gaps between them, and every token that no step has seen.
  std::vector<index_t> listed_slots(const SlotRun* runs, index_t count, index_t slots, index_t tokens, index_t l) const {
    std::vector<index_t> listed;
    index_t end = -1;
    for (index_t i = 0; i < count; ++i) {
      REQUIRE(runs[i].first > end);
      REQUIRE(runs[i].last > runs[i].first);
      end = runs[i].last;
      for (index_t slot = runs[i].first; slot < end; ++slot) listed.push_back(slot);
    }
    REQUIRE(end == slots);  // the newest token is pending
    REQUIRE(static_cast<index_t>(listed.size()) >= cache_.pending(l));
    REQUIRE(listed[listed.size() - static_cast<std::size_t>(cache_.pending(l))] == slots - cache_.pending(l));
    if (tokens > cache_.retrieval().longest_call()) REQUIRE(static_cast<index_t>(listed.size()) == slots);
    return listed;
  }

  /// How far an output is from the line between attention and the mean of all stored values, which part of both is mixed.
  double off_line(const float* got, const std::vector<double>& attention, std::span<const NaiveSlot> slots) const {
    std::vector<double> mean(attention.size(), 0.0);
    for (const NaiveSlot& s : slots)
      for (std::size_t d = 0; d < mean.size(); ++d) mean[d] += s.v[d] / static_cast<double>(slots.size());
    double along = 0, length = 0, off = 0;
    for (std::size_t d = 0; d < mean.size(); ++d) {
      along += (static_cast<double>(got[d]) - mean[d]) * (attention[d] - mean[d]);
      length += (attention[d] - mean[d]) * (attention[d] - mean[d]);
    }
    const double part = length > 0 ? along / length : 1.0;
    if (!(part > -1e-4 && part < 1.0 + 1e-4)) return INFINITY;
    for (std::size_t d = 0; d < mean.size(); ++d)
      off = larger(off, static_cast<double>(got[d]) - mean[d] - part * (attention[d] - mean[d]));
    return off;
  }

  /// An index is a pure function of what is stored.
  void check_index() {
    INFO(calls_);
    if (!cache_.plan().indexed) return;
    auto copy = cache_.fork();
    REQUIRE(copy.status() == Status::ok);
    REQUIRE(copy->rebuild_index() == Status::ok);
    for (index_t l = 0; l < shape_.layers; ++l)
      for (index_t h = 0; h < shape_.kv_heads; ++h) {
        const auto &was = cache_.layers()[l].index[h], &is = copy->layers()[l].index[h];
        REQUIRE(was.covered == (cache_.plan().learns && was.found.empty() ? 0 : cache_.slots(l, h) - cache_.pending(l)));
        for (int p = 0; p < retrieve::UnitState::planes; ++p)
          REQUIRE(std::ranges::equal(was.plane[p].span(), is.plane[p].span()));
      }
  }

  /// NaN counts as infinitely wrong.
  static double larger(double worst, double difference) {
    const double d = std::abs(difference);
    return d <= worst ? worst : d == d ? d : INFINITY;
  }

  CacheShape shape_;
  R recipe_;
  CountingMemory memory_;
  Cache<Cpu, R> cache_;
  Workspace work_;
  Context<Cpu> ctx_;
  std::map<index_t, NaiveSlot> gone_;
  NaiveCache naive_;
  std::vector<std::vector<std::vector<float>>> queries_;  ///< [layer][token]
  std::mt19937 random_;
  double most_error_, attend_error_;
  std::string calls_;  ///< what to type to see a failure again
};

/// One call in numbers: `a` and `b` are brought into the range that is legal when it comes.
struct Call {
  std::uint8_t kind = 0;  ///< of `kinds`; what is above them is a token
  std::uint16_t a = 0, b = 0;
  static constexpr int kinds = 11, weights = 17;

  static Call random(std::mt19937& random) {
    const auto draw = [&](unsigned most) { return std::uniform_int_distribution<unsigned>(0, most)(random); };
    return {static_cast<std::uint8_t>(draw(weights - 1)), static_cast<std::uint16_t>(draw(65535)), static_cast<std::uint16_t>(draw(65535))};
  }
};

template <class R>
void run(CacheModel<R>& m, const Call& call) {
  const auto within = [](std::uint16_t x, index_t lo, index_t hi) { return lo + x % (hi - lo + 1); };
  const index_t length = m.cache().length();
  switch (length == 0 ? 0 : call.kind) {
    case 0: case 1: m.forward(within(call.a, 1, 96)); break;
    case 2: {  // drafts, some of them taken back
      const index_t drafts = within(call.a, 1, 5);
      for (index_t d = 0; d < drafts; ++d) m.forward(1, true);
      m.truncate(length + within(call.b, 0, drafts));
      break;
    }
    case 3: m.truncate(within(call.a, 0, length)); break;
    case 4: {
      const index_t first = within(call.a, 0, length);
      m.remove(first, within(call.b, first, std::min(length, first + 40)));
      break;
    }
    case 5: m.become_fork(); break;
    case 6: if (call.a % 6 == 0) m.reset(); break;
    case 7: m.turn(within(call.a, 1, 20)); break;
    case 8: m.probe(within(call.a, 1, 12)); break;
    case 9: m.become_loaded(); break;
    case 10: m.become_beam(); break;
    default: m.forward(1); break;
  }
}

/// A random legal sequence of calls.
template <class R>
void exercise(const CacheShape& shape, const R& recipe, std::uint32_t seed, int calls, double most_error) {
  CAPTURE(seed, shape.q_heads, shape.kv_heads, shape.head_dim, shape.value_dim);
  CacheModel<R> m(shape, recipe, seed, most_error);
  for (int i = 0; i < calls; ++i) run(m, Call::random(m.random()));
}

}  // namespace kvcondense::test
