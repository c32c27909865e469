#pragma once

#include <catch2/catch.hpp>

#include <evict/driver.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/prim/slot_exposure.hpp>

namespace kvcondense::test {

/// Which of the general promises a policy makes.
struct Promises {
  bool fills_budget = true;  // keeps exactly min(slots, max(budget, protected))
  bool keeps_newest = true;
  bool heads_alone = true;  // what one head keeps does not depend on the others
  bool always_fires = true;  // at the end of every prompt
  bool all_workspace = true;  // a step that lets slots go uses all that the pipeline asks for
  index_t mark_lane = -1;  // says how many rows saw a slot, by prim::exposure_mark
};

/// Reproducible numbers in [0, 1), a different one for every (head, token).
inline double number(std::uint32_t seed, index_t head, index_t token) {
  return static_cast<double>(random_uniform(seed, static_cast<std::uint64_t>(head * 1000003 + token)));
}

/// What a step of so many tokens is given beside attention, of heads with these identities.
struct StepNumbers {
  std::vector<float> gates, surprise, queries, keys, values, mean, covariance;
  StepInputs inputs;

  StepNumbers(const CacheShape& s, index_t first, index_t tokens, std::uint32_t seed, const Ints& identity) {
    const auto draw = [&](std::uint32_t what, index_t h, index_t i) { return static_cast<float>(number(seed + what, h, i)) - 0.5f; };
    const auto whose = [&](index_t q_head) { return identity[at(q_head / s.group())] * s.group() + q_head % s.group(); };
    for (index_t t = 0; t < tokens; ++t) surprise.push_back(draw(6, 0, first + t) + 0.5f);
    for (index_t h = 0; h < s.kv_heads; ++h)
      for (index_t t = 0; t < tokens; ++t) {
        gates.push_back(draw(7, identity[at(h)], first + t));
        for (index_t d = 0; d < s.head_dim; ++d) keys.push_back(draw(8, identity[at(h)], 7 * (first + t) + d));
        for (index_t d = 0; d < s.values(); ++d) values.push_back(draw(9, identity[at(h)], 7 * (first + t) + d));
      }
    for (index_t h = 0; h < s.q_heads; ++h) {
      for (index_t t = 0; t < tokens; ++t)
        for (index_t d = 0; d < s.head_dim; ++d) queries.push_back(draw(10, whose(h), 7 * (first + t) + d));
      for (index_t d = 0; d < s.head_dim; ++d) mean.push_back(draw(11, whose(h), d));
      for (index_t d = 0; d < s.head_dim * s.head_dim; ++d) covariance.push_back(d % (s.head_dim + 1) == 0 ? 0.5f + draw(12, whose(h), d) : 0.0f);
    }
    inputs = {.raw_queries = dense_view(queries.data(), s.q_heads, tokens, s.head_dim),
              .raw_keys = dense_view(keys.data(), s.kv_heads, tokens, s.head_dim),
              .values = dense_view(values.data(), s.kv_heads, tokens, s.values()),
              .query_mean = dense_view(mean.data(), s.q_heads, s.head_dim),
              .query_covariance = dense_view(covariance.data(), s.q_heads, s.head_dim, s.head_dim),
              .gates = dense_view(gates.data(), s.kv_heads, tokens),
              .surprise = surprise};
  }
};

/// A driver whose heads hold random numbers of tokens; heads of policies with one set hold the same.
/// identity[h]: which head's numbers head h has. Its inputs are those of a step of `appended` tokens. Marks in `mark_lane` are of slots
/// that some rows saw.
template <class P>
auto ragged(const P& policy, const CacheShape& shape, std::uint32_t seed, const Ints& identity, index_t appended, index_t mark_lane = -1) {
  auto d = drive(shape, policy);
  const bool measured = P::needs.has(Input::attention) || P::needs.has(Input::queries);
  const bool one_set = d.pipeline.source.one_set() && measured;
  constexpr index_t sizes[] = {0, 1, 30, 31, 32, 256};
  d.seen = d.stepped = 300;
  const auto given = std::make_shared<const StepNumbers>(shape, d.seen, appended, seed, identity);
  d.inputs = given->inputs, d.owner = given;
  for (index_t h = 0; h < shape.kv_heads; ++h) {
    const double draw = number(seed + 3, one_set ? 0 : identity[at(h)], 0);
    const index_t n = sizes[static_cast<std::size_t>(6 * draw)];
    for (index_t i = 0; i < n; ++i) d.held[at(h)].push_back(i);
    for (auto& l : d.lane)
      for (index_t i = 0; i < n; ++i) {
        const double x = number(seed + 1, identity[at(h)], i);
        const bool marks = &l - d.lane.data() == mark_lane;
        l[at(h)].push_back(marks ? prim::exposure_mark(1 + static_cast<std::uint32_t>(8 * x), static_cast<std::uint32_t>(d.stepped)) : static_cast<float>(x));
      }
  }
  d.key = [seed, identity](index_t h, index_t t, index_t c) {
    return static_cast<float>(number(seed + 2, identity[at(h)], 7 * t + c));
  };
  d.value = [seed, identity](index_t h, index_t t, index_t c) {
    return static_cast<float>(number(seed + 4, identity[at(h)], 7 * t + c));
  };
  d.query = [seed, identity, group = shape.group()](index_t h, index_t t, index_t c) {
    return static_cast<float>(4 * number(seed + 5, identity[at(h / group)], 7 * t + c + 97 * (h % group)) - 2);
  };
  return d;
}

inline bool rising(const Ints& x, index_t n) {
  for (std::size_t i = 0; i < x.size(); ++i)
    if (x[i] < 0 || x[i] >= n || (i > 0 && x[i] <= x[i - 1])) return false;
  return true;
}

template <class P>
void check_promises_once(const P& policy, const P& roomy, Promises promised, std::uint32_t seed, index_t group) {
  const index_t heads = 1 + static_cast<index_t>(seed % 4);
  const index_t appended = seed % 3 == 0 ? 1 : 3;
  CAPTURE(seed, group, heads, appended);
  const CacheShape shape{.layers = 4, .q_heads = heads * group, .kv_heads = heads, .head_dim = 3};
  REQUIRE(policy.validate(shape) == Status::ok);
  REQUIRE(roomy.validate(shape) == Status::ok);
  Ints same, swapped;
  for (index_t h = 0; h < heads; ++h) same.push_back(h), swapped.push_back(heads - 1 - h);
  const bool coarse = seed % 2 == 0;  // few values: ties everywhere
  const auto mass_of = [&](const Ints& identity, bool bad) -> PerToken {
    return [=](index_t h, index_t t) {
      const double x = number(seed, identity[at(h)], t);
      if (bad && x < 0.2) return std::nan("");
      return coarse ? std::floor(4 * x) / 4 : x;
    };
  };

  auto d = ragged(policy, shape, seed, same, appended, promised.mark_lane);
  const Rows before = with_new(d.held, d.seen, appended);
  auto twin = d;
  REQUIRE(d.step(appended, Phase::prefill_end, mass_of(same, false)) == Status::ok);
  if (promised.always_fires) REQUIRE(d.fired);
  Ints offset{0};
  for (const Ints& row : before) offset.push_back(offset.back() + static_cast<index_t>(row.size()));
  StepView<Cpu> view;
  view.shape = shape, view.offset = offset.data(), view.seen = d.seen, view.appended = appended;
  for (index_t h = 0; h < heads; ++h) {
    const auto n = static_cast<index_t>(before[at(h)].size());
    const evict::Protected shield = d.pipeline.protect.of(view, h).within(n);
    const Ints& kept = d.kept[at(h)];
    const index_t b = d.budget[at(h)];
    CAPTURE(h, n, b, kept);
    REQUIRE(rising(kept, n));
    REQUIRE((b >= 0 && b <= n));
    if (promised.fills_budget) REQUIRE(static_cast<index_t>(kept.size()) == std::max(b, shield.size()));
    for (index_t i = 0; i < n; ++i)
      if (i < shield.prefix || i >= n - shield.suffix)
        REQUIRE(std::binary_search(kept.begin(), kept.end(), i));
    if (promised.keeps_newest && n > 0) REQUIRE(kept.back() == n - 1);
    if (b >= n)
      REQUIRE(d.held[at(h)] == before[at(h)]);
  }

  {  // the same step gives the same set
    REQUIRE(twin.step(appended, Phase::prefill_end, mass_of(same, false)) == Status::ok);
    REQUIRE(twin.held == d.held);
    REQUIRE(twin.lane == d.lane);
  }
  {  // a budget above all lengths changes nothing
    auto all = ragged(roomy, shape, seed, same, appended, promised.mark_lane);
    REQUIRE(all.step(appended, Phase::prefill_end, mass_of(same, false)) == Status::ok);
    REQUIRE(all.held == before);
  }
  if (promised.heads_alone) {  // heads in another order keep the same
    auto other = ragged(policy, shape, seed, swapped, appended, promised.mark_lane);
    REQUIRE(other.step(appended, Phase::prefill_end, mass_of(swapped, false)) == Status::ok);
    for (index_t h = 0; h < heads; ++h) REQUIRE(other.held[at(h)] == d.held[at(heads - 1 - h)]);
  }
  if (P::needs.has(Input::attention)) {  // attention that is not a number does no harm, and is counted
    auto bad = ragged(policy, shape, seed, same, appended, promised.mark_lane);
    REQUIRE(bad.step(appended, Phase::prefill_end, mass_of(same, true)) == Status::ok);
    index_t met = 0;
    for (index_t h = 0; h < heads; ++h) {
      const auto n = static_cast<index_t>(before[at(h)].size());
      REQUIRE(rising(bad.kept[at(h)], n));
      if (promised.fills_budget)
        REQUIRE(static_cast<index_t>(bad.kept[at(h)].size()) == std::max(bad.budget[at(h)], d.pipeline.protect.of(view, h).within(n).size()));
      if (bad.budget[at(h)] < n)
        for (const index_t t : before[at(h)]) met += number(seed, h, t) < 0.2;
    }
    if (met == 0) REQUIRE(bad.nan == 0);
  }
  bool over = false;
  for (index_t h = 0; h < heads; ++h) over = over || d.kept[at(h)].size() < before[at(h)].size();
  if (over && promised.all_workspace) {  // a workspace one byte short is refused
    auto poor = ragged(policy, shape, seed, same, appended, promised.mark_lane);
    poor.workspace_cut = 1;
    REQUIRE(poor.step(appended, Phase::prefill_end, mass_of(same, false)) == Status::workspace_too_small);
  }
}

/// What every composition promises, on random ragged heads. `policy` has a budget of about 24 slots,
/// `roomy` one above all lengths.
template <class P>
void check_promises(const P& policy, const P& roomy, Promises promised = {}) {
  for (std::uint32_t seed = 0; seed < 16; ++seed)
    for (const index_t group : {1, 2, 7, 16}) check_promises_once(policy, roomy, promised, seed, group);
}

}  // namespace kvcondense::test
