#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include <evict/properties.hpp>
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/evict/block_prefill.hpp>
#include <kvcondense/evict/caote.hpp>
#include <kvcondense/evict/fastgen.hpp>
#include <support/byte_list.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

enum : int { undecided, special, punctuation, frequent, local, full };

/// Every ninth token is special, every fifth one punctuation.
TokenClass kind(index_t token) {
  return token % 9 == 0 ? TokenClass::special : token % 5 == 2 ? TokenClass::punctuation : TokenClass::plain;
}
std::vector<TokenClass> kinds(index_t first, index_t count) {
  std::vector<TokenClass> list;
  for (index_t t = first; t < first + count; ++t) list.push_back(kind(t));
  return list;
}

/// One step of tokens of such classes.
template <class D>
Status feed(D& d, index_t count, Phase phase) {
  const auto list = kinds(d.seen, count);
  d.inputs = {.classes = list};
  return d.step(count, phase);
}

/// The policy of a head, which all its slots carry.
template <class D>
int policy_of(const D& d, index_t h) {
  const auto& lane = d.lane[0][at(h)];
  for (const float x : lane) REQUIRE(x == lane[0]);
  return lane.empty() ? undecided : static_cast<int>(lane[0]);
}

index_t part(double share, index_t tokens) {
  return static_cast<index_t>(std::ceil(share * static_cast<double>(tokens) - 1e-6));
}

/// One head of the method, written down as the paper says it, in double.
struct Plain {
  evict::FastGen rule;
  Ints held;
  std::map<index_t, double> sum, rows;
  int own = undecided;

  /// As the library counts them: a row at a distance of more slots than there are did not see a slot.
  void count_rows(index_t count) {
    for (std::size_t j = 0; j < held.size(); ++j)
      rows[held[j]] = std::min(static_cast<double>(count), static_cast<double>(held.size() - j));
  }

  /// What the newest `count` rows give each token that is held: all of it, and what lies within `window`.
  template <class D>
  void attend(const D& d, index_t h, index_t seen, index_t count, index_t window, std::map<index_t, double>& all,
              std::map<index_t, double>* near, std::map<index_t, double>* times) const {
    const index_t group = d.shape.group(), dim = d.shape.head_dim;
    // Rows are read once: the driver makes each number anew.
    std::vector<double> keys, query(at(dim));
    for (const index_t t : held)
      for (index_t c = 0; c < dim; ++c) keys.push_back(static_cast<double>(d.key(h, t, c)));
    for (index_t row = std::max<index_t>(0, seen - count); row < seen; ++row) {
      const auto m = static_cast<index_t>(std::upper_bound(held.begin(), held.end(), row) - held.begin());
      std::vector<double> p(at(m), 0.0);
      for (index_t g = 0; g < group; ++g) {
        for (index_t c = 0; c < dim; ++c) query[at(c)] = static_cast<double>(d.query(h * group + g, row, c));
        std::vector<double> e;
        double whole = 0;
        for (index_t j = 0; j < m; ++j) {
          const double z = std::inner_product(query.begin(), query.end(), keys.begin() + j * dim, 0.0);
          whole += e.emplace_back(std::exp(z / std::sqrt(static_cast<double>(dim))));
        }
        for (index_t j = 0; j < m; ++j) p[at(j)] += e[at(j)] / whole / static_cast<double>(group);
      }
      for (index_t j = 0; j < m; ++j) {
        all[held[at(j)]] += p[at(j)];
        if (near != nullptr && j >= m - window) (*near)[held[at(j)]] += p[at(j)];
        if (times != nullptr) (*times)[held[at(j)]] += 1;
      }
    }
  }

  /// The least policy that keeps each token, whatever its place.
  std::map<index_t, int> least(index_t count) const {
    Ints order = held;
    const auto score = [&](index_t t) { return rule.per_row ? sum.at(t) / rows.at(t) : sum.at(t); };
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return score(a) > score(b); });
    std::map<index_t, int> out;
    for (std::size_t i = 0; i < order.size(); ++i) {
      const TokenClass c = kind(order[i]);
      out[order[i]] = c == TokenClass::special       ? special
                      : c == TokenClass::punctuation ? punctuation
                      : i < at(count)                ? frequent
                                                     : full;
    }
    return out;
  }

  template <class D>
  void step(const D& d, index_t h, index_t first, index_t count, Phase phase) {
    for (index_t t = first; t < first + count; ++t) held.push_back(t);
    const index_t seen = first + count, window = part(rule.local, seen);
    if (phase == Phase::prefill_chunk) return;
    if (phase == Phase::prefill_end) {
      std::map<index_t, double> near;
      sum.clear(), rows.clear();
      attend(d, h, seen, rule.profile, window, sum, &near, &rows);
      if (static_cast<index_t>(held.size()) < seen) count_rows(rule.profile);
      const auto level = least(part(rule.frequent, seen));
      double all = 0, kept = 0;
      for (const index_t t : held) all += sum[t];
      for (own = special; own < full; ++own) {
        for (const index_t t : held) {
          if (level.at(t) == own) kept += sum[t];
          if (own == local && level.at(t) == full) kept += near[t];
        }
        if (kept >= rule.recovery * all) break;
      }
    } else {
      attend(d, h, seen, count, 0, sum, nullptr, &rows);
    }
    const auto level = least(part(rule.frequent, seen));
    Ints kept;
    for (std::size_t j = 0; j < held.size(); ++j) {
      const bool close = own >= local && j + at(window) >= held.size();
      if (level.at(held[j]) <= own || close || own == full || j + 1 == held.size()) kept.push_back(held[j]);
    }
    held = kept;
  }
};

/// A driver whose heads attend the more evenly, the later they come.
template <class P>
auto drive_heads(const CacheShape& shape, const P& policy) {
  auto d = drive(shape, policy);
  d.key = noise(5, 2.0f);
  d.query = [group = shape.group()](index_t q, index_t t, index_t c) {
    return noise(6, 24.0f / static_cast<float>(1 + q / group))(q, t, c);
  };
  return d;
}

}  // namespace

TEST_CASE("fastgen: the policy of every threshold equals the oracle, and so does what stays", "[evict][fastgen]") {
  const auto oracle = eviction_oracle("fastgen");
  const auto& rows = oracle["A"];
  const auto n = static_cast<index_t>(rows.size());
  const std::vector<std::string> names{"", "special", "special+punct", "special+punct+frequent", "special+punct+frequent+local", "full"};
  const std::vector<Ints> stays{{}, {0, 5}, {0, 2, 5}, {0, 1, 2, 5}, {0, 1, 2, 4, 5}, {0, 1, 2, 3, 4, 5}};
  std::vector<TokenClass> classes(at(n), TokenClass::plain);
  for (const std::size_t t : oracle["special"]) classes[t] = TokenClass::special;
  for (const std::size_t t : oracle["punct"]) classes[t] = TokenClass::punctuation;
  const auto run = [&](double recovery) {
    // The oracle's frequent tokens are those of the largest sums.
    const evict::FastGen policy{.recovery = recovery, .frequent = oracle["params"]["frequency_ratio"],
                                .local = oracle["params"]["local_window"].get<double>() / static_cast<double>(n), .per_row = false};
    auto d = drive({.head_dim = n, .softmax_scale = 1.0f}, policy);
    // Row r is the query along axis r, and keys have the logarithms of the probabilities there.
    d.query = [](index_t, index_t t, index_t c) { return t == c ? 1.0f : 0.0f; };
    d.key = [&](index_t, index_t t, index_t c) { return t <= c ? static_cast<float>(std::log(rows[at(c)][at(t)].get<double>())) : 0.0f; };
    d.inputs = {.classes = classes};
    REQUIRE(d.step(n, Phase::prefill_end) == Status::ok);
    return d;
  };
  for (const auto& [threshold, name] : oracle["chosen_policy_by_threshold"].items()) {
    const auto d = run(std::stod(threshold));
    REQUIRE(names[at(policy_of(d, 0))] == name.get<std::string>());
    REQUIRE(d.held[0] == stays[at(policy_of(d, 0))]);
  }
  for (int i = 0; i < 5; ++i) {
    const auto& set = oracle["retained_mass"][at(i)];
    const double mass = set["mass"];
    const auto below = run(mass - 1e-6);
    REQUIRE(names[at(policy_of(below, 0))] == set["policy"].get<std::string>());
    REQUIRE(below.held[0] == stays[at(i + 1)]);
    if (i < 4) REQUIRE(policy_of(run(mass + 1e-6), 0) == i + 2);
  }
}

TEST_CASE("fastgen: keeps what the plain method keeps, through a prompt in chunks, an answer and another prompt", "[evict][fastgen]") {
  std::vector<int> met(6, 0);
  index_t number = 0;
  for (const index_t dim : {64, 80, 96, 128})
    for (const index_t group : {1, 3, 4, 7})
      for (const double recovery : {0.03, 0.3, 0.6, 0.8, 0.9, 0.99}) {
        if (++number % 5 != 1) continue;  // each value of one with each of another
        const bool per_row = (dim / 16 + group) % 2 == 0;
        CAPTURE(dim, group, recovery, per_row);
        const evict::FastGen p{.recovery = recovery, .frequent = 0.3, .local = 0.2, .profile = 25, .per_row = per_row};
        auto d = drive_heads({.q_heads = 3 * group, .kv_heads = 3, .head_dim = dim}, p);
        std::vector<Plain> want(3, Plain{p, {}, {}, {}});
        const auto step = [&](index_t n, Phase phase) {
          const index_t first = d.seen;
          REQUIRE(feed(d, n, phase) == Status::ok);
          for (index_t h = 0; h < 3; ++h) {
            want[at(h)].step(d, h, first, n, phase);
            CAPTURE(h, first, n);
            REQUIRE(policy_of(d, h) == want[at(h)].own);
            REQUIRE(d.held[at(h)] == want[at(h)].held);
            ++met[at(want[at(h)].own)];
          }
        };
        step(30, Phase::prefill_chunk);
        step(20, Phase::prefill_end);
        for (const index_t n : {1, 1, 1, 4, 1, 1, 1, 1, 2, 1, 1, 1}) step(n, Phase::decode);
        step(9, Phase::prefill_chunk);
        step(12, Phase::prefill_end);
        for (const index_t n : {1, 3, 1, 1}) step(n, Phase::decode);
      }
  for (int own = special; own <= full; ++own) {
    CAPTURE(own);
    REQUIRE(met[at(own)] > 30);
  }
}

TEST_CASE("fastgen: what each policy does with tokens that are generated", "[evict][fastgen]") {
  const auto run = [](int own, index_t steps) {
    auto d = drive_heads({.head_dim = 4}, evict::FastGen{.frequent = 0.2, .local = 0.3, .profile = 30});
    REQUIRE(feed(d, 30, Phase::prefill_end) == Status::ok);
    // Every token of the prompt is there again, under the policy that is asked for.
    d.held[0].clear();
    for (index_t t = 0; t < 30; ++t) d.held[0].push_back(t);
    d.lane[0][0].assign(30, static_cast<float>(own));
    d.lane[1][0].clear();
    for (index_t t = 0; t < 30; ++t) d.lane[1][0].push_back(static_cast<float>(kind(t)));
    d.lane[2][0].assign(30, 0.0f), d.lane[3][0].assign(30, prim::exposure_mark(30, static_cast<std::uint32_t>(d.stepped)));
    for (index_t i = 0; i < 30; ++i) d.lane[2][0][at(i)] = static_cast<float>((i * 7) % 30);  // means of their own
    for (index_t i = 0; i < steps; ++i) REQUIRE(feed(d, 1, Phase::decode) == Status::ok);
    REQUIRE(policy_of(d, 0) == own);
    return d.held[0];
  };
  const auto of_kind = [](index_t last, auto&& keep) {
    Ints list;
    for (index_t t = 0; t < last; ++t)
      if (keep(t) || t == last - 1) list.push_back(t);
    return list;
  };
  const auto special_only = [](index_t t) { return kind(t) == TokenClass::special; };
  const auto with_marks = [](index_t t) { return kind(t) != TokenClass::plain; };
  for (index_t steps = 1; steps < 16; ++steps) {
    const index_t seen = 30 + steps;
    REQUIRE(run(special, steps) == of_kind(seen, special_only));
    REQUIRE(run(punctuation, steps) == of_kind(seen, with_marks));
    REQUIRE(run(full, steps) == of_kind(seen, [](index_t) { return true; }));
    REQUIRE(run(undecided, steps) == run(full, steps));

    // Frequent heads keep some plain tokens too, local ones those and the newest.
    const Ints some = run(frequent, steps), wide = run(local, steps);
    for (const index_t t : of_kind(seen, with_marks)) REQUIRE(std::count(some.begin(), some.end(), t) == 1);
    index_t others = 0;
    for (const index_t t : some) others += kind(t) == TokenClass::plain;
    REQUIRE(others <= part(0.2, seen) + 1);
    REQUIRE(std::includes(wide.begin(), wide.end(), some.begin(), some.end()));
    for (index_t t = seen - part(0.3, seen); t < seen; ++t)
      if (t >= 30 || steps == 1) REQUIRE(std::count(wide.begin(), wide.end(), t) == 1);
  }
}

TEST_CASE("fastgen: a head of special tokens stores nothing beyond the step, and still never loses its newest token", "[evict][fastgen]") {
  auto d = drive_heads({.head_dim = 4}, evict::FastGen{.recovery = 0.0});
  REQUIRE(feed(d, 1, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0});
  for (index_t t = 1; t < 30; ++t) {
    REQUIRE(feed(d, 1, Phase::decode) == Status::ok);
    Ints want;
    for (index_t s = 0; s <= t; s += 9) want.push_back(s);
    if (want.back() != t) want.push_back(t);
    REQUIRE(d.held[0] == want);
  }
  REQUIRE(feed(d, 3, Phase::decode) == Status::ok);  // accepted drafts: the last of them is the newest
  REQUIRE(d.held[0] == Ints{0, 9, 18, 27, 32});
}

TEST_CASE("fastgen: a later prompt chooses anew, and `block_prefill` chooses while chunks come", "[evict][fastgen]") {
  const evict::FastGen p{.recovery = 0.6, .profile = 20};
  auto d = drive_heads({.head_dim = 8}, p);
  d.query = [](index_t, index_t t, index_t c) { return t < 40 ? 0.0f : noise(9, 60.0f)(0, t, c); };
  REQUIRE(feed(d, 40, Phase::prefill_end) == Status::ok);
  const int first = policy_of(d, 0);
  REQUIRE(feed(d, 30, Phase::prefill_chunk) == Status::ok);
  REQUIRE(policy_of(d, 0) == first);
  REQUIRE(feed(d, 10, Phase::prefill_end) == Status::ok);
  REQUIRE(policy_of(d, 0) != first);

  auto blocks = drive_heads({.head_dim = 8}, evict::BlockPrefill{p, 16});
  REQUIRE(feed(blocks, 10, Phase::prefill_chunk) == Status::ok);
  REQUIRE(policy_of(blocks, 0) == undecided);
  REQUIRE(feed(blocks, 10, Phase::prefill_chunk) == Status::ok);
  REQUIRE(policy_of(blocks, 0) != undecided);
}

TEST_CASE("fastgen: every knob has its say", "[evict][fastgen]") {
  using F = evict::FastGen;
  const auto kept = [](const F& p) {
    auto d = drive_heads({.q_heads = 4, .kv_heads = 4, .head_dim = 6}, p);
    REQUIRE(feed(d, 60, Phase::prefill_end) == Status::ok);
    for (int i = 0; i < 6; ++i) REQUIRE(feed(d, 1, Phase::decode) == Status::ok);
    return d.held;
  };
  const Rows before = kept({.recovery = 0.7, .frequent = 0.2, .local = 0.2, .profile = 40});
  for (const F& other : {F{.recovery = 0.9, .frequent = 0.2, .local = 0.2, .profile = 40}, {.recovery = 0.7, .frequent = 0.3, .local = 0.2, .profile = 40},
                         {.recovery = 0.7, .frequent = 0.2, .local = 0.6, .profile = 40}, {.recovery = 0.7, .frequent = 0.2, .local = 0.2, .profile = 4},
                         {.recovery = 0.7, .frequent = 0.2, .local = 0.2, .profile = 40, .per_row = false}})
    REQUIRE(kept(other) != before);
}

TEST_CASE("fastgen: attention that is not a number keeps everything", "[evict][fastgen]") {
  auto d = drive_heads({.q_heads = 2, .kv_heads = 2, .head_dim = 4}, evict::FastGen{.recovery = 0.1});
  d.query = [](index_t q, index_t t, index_t c) { return q == 0 && t == 7 ? std::nanf("") : noise(6, 4.0f)(q, t, c); };
  REQUIRE(feed(d, 20, Phase::prefill_end) == Status::ok);
  REQUIRE(policy_of(d, 0) == full);
  REQUIRE(d.held[0].size() == 20);
  REQUIRE(policy_of(d, 1) < full);
  d.query = [](index_t, index_t, index_t) { return std::nanf(""); };
  for (int i = 0; i < 3; ++i) REQUIRE(feed(d, 1, Phase::decode) == Status::ok);
  REQUIRE(d.held[0].size() == 23);
  REQUIRE(d.held[1].back() == 22);
}

TEST_CASE("fastgen: keeps the promises of a pipeline", "[evict][fastgen]") {
  const evict::FastGen some{.recovery = 0.5, .frequent = 0.04, .local = 0.04, .profile = 20}, all{.recovery = 1.0, .frequent = 1.0};
  check_promises(some, all);
  check_promises(budget::Uniform{some, 24}, budget::Uniform{some, 300});
}

TEST_CASE("fastgen: scores are no shares, and heads that differ keep no common set", "[evict][fastgen]") {
  REQUIRE(evict::Caote{evict::FastGen{}}.validate({}) == Status::incompatible);
  REQUIRE_FALSE(evict::FastGen{}.pipeline().source.one_set());
  REQUIRE(evict::FastGen{}.pipeline().lanes() == 4);
}

TEST_CASE("fastgen: fields out of range are refused", "[evict][fastgen]") {
  using F = evict::FastGen;
  for (const F& bad : {F{.recovery = -0.1}, {.recovery = 1.1}, {.recovery = std::nan("")}, {.frequent = -0.1}, {.frequent = 1.1}, {.local = -0.1},
                       {.local = 1.1}, {.profile = 0}})
    REQUIRE(bad.validate({}) == Status::invalid_argument);
  REQUIRE(F{.recovery = 1.0, .frequent = 0.0, .local = 0.0, .profile = 1}.validate({}) == Status::ok);
}

namespace {

const CacheShape cache_shape{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 16};

/// A cache of two heads: queries of the first look at special tokens only, those of the second at all alike.
template <class C>
struct Fed {
  C& cache;
  Context<Cpu>& ctx;

  void operator()(index_t n, Phase phase) {
    const index_t first = cache.length(), dim = cache_shape.head_dim;
    std::vector<float> q(at(4 * n * dim), 0.0f), k(at(2 * n * dim), 0.0f), v(at(2 * n * dim)), out(at(4 * n * dim));
    for (index_t t = 0; t < n; ++t) {
      q[at(t * dim)] = q[at((n + t) * dim)] = 60.0f;
      for (index_t h = 0; h < 2; ++h) k[at((h * n + t) * dim)] = kind(first + t) == TokenClass::special ? 1.0f : 0.0f;
      for (index_t h = 0; h < 2; ++h)
        for (index_t c = 0; c < dim; ++c) v[at((h * n + t) * dim + c)] = noise(8)(h, first + t, c);
    }
    const auto classes = kinds(first, n);
    const auto rows = [&](const std::vector<float>& x, index_t heads) { return dense_view(x.data(), heads, n, dim); };
    REQUIRE(cache.forward(ctx, 0, rows(q, 4), rows(k, 2), rows(v, 2), dense_view(out.data(), 4, n, dim), {}, phase,
                          StepInputs{.classes = classes}) == Status::ok);
  }
};
template <class C>
Fed(C&, Context<Cpu>&) -> Fed<C>;

}  // namespace

TEST_CASE("fastgen: each head of a cache frees its own slots, and forks, snapshots and rollbacks keep its policy", "[evict][fastgen]") {
  CacheRig r(cache_shape, recipe(evict::FastGen{}), 600, 256);
  Fed feed_cache{r.cache, r.ctx};
  feed_cache(256, Phase::prefill_end);
  const index_t stay = 29 + 1;  // special ones, and the newest
  REQUIRE(r.cache.slots(0, 0) == stay);
  REQUIRE(r.cache.slots(0, 1) == 256);
  REQUIRE(r.cache.report().exact_bytes < static_cast<std::size_t>((256 + stay + 3 * 16) * 2 * 16 * 4));
  REQUIRE(r.cache.report().bytes() == r.memory.live_bytes);

  auto fork = r.cache.fork();
  REQUIRE(fork);
  ByteList file;
  REQUIRE(save(r.cache, file) == Status::ok);
  CacheRig loaded(cache_shape, recipe(evict::FastGen{}), 600, 256);
  REQUIRE(load(loaded.cache, file.bytes) == Status::ok);
  REQUIRE(r.cache.truncate(250) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 28);
  const auto go_on = [](auto& cache, Context<Cpu>& ctx) {
    Fed more{cache, ctx};
    const index_t first = cache.length();
    for (int i = 0; i < 40; ++i) more(1, Phase::decode);
    index_t specials = 0;
    for (index_t t = 0; t < first + 40; ++t) specials += kind(t) == TokenClass::special;
    REQUIRE(cache.slots(0, 0) == specials + (kind(first + 39) != TokenClass::special));
    REQUIRE(cache.slots(0, 1) == first + 40);
  };
  go_on(r.cache, r.ctx), go_on(*fork, r.ctx), go_on(loaded.cache, loaded.ctx);
  REQUIRE(r.cache.truncate(0) == Status::ok);  // nobody is left to know the policy
  Fed{r.cache, r.ctx}(20, Phase::decode);
  REQUIRE(r.cache.slots(0, 0) == 20);
}

TEST_CASE("fastgen: a prompt in chunks is profiled as one in a single step", "[evict][fastgen]") {
  for (const index_t chunk : {1, 7, 64}) {
    CacheRig r(cache_shape, recipe(evict::FastGen{.recovery = 0.9, .profile = 50}), 600, 256);
    Fed feed_cache{r.cache, r.ctx};
    for (index_t t = 0; t < 200; t += chunk)
      feed_cache(std::min<index_t>(chunk, 200 - t), t + chunk >= 200 ? Phase::prefill_end : Phase::prefill_chunk);
    REQUIRE(r.cache.slots(0, 0) == 23 + 1);
    REQUIRE(r.cache.slots(0, 1) == 200);
  }
}

TEST_CASE("fastgen: a cache says that it lacks classes, or queries", "[evict][fastgen]") {
  CacheRig r(cache_shape, recipe(evict::FastGen{}), 64, 16);
  std::mt19937 random(5);
  const Tokens t(cache_shape, 9, random);
  const auto classes = kinds(0, 9);
  REQUIRE(r.cache.append(r.ctx, 0, t.keys(cache_shape), t.values(cache_shape)) == Status::ok);
  const StepInputs none{}, some{.queries = t.queries(cache_shape)};
  REQUIRE(std::string(r.cache.missing(0, none)) == "queries");
  REQUIRE(std::string(r.cache.missing(0, some)) == "classes");
  REQUIRE(r.cache.step(r.ctx, 0, some) == Status::missing_input);
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{.queries = some.queries, .classes = std::span(classes).first(8)}) == Status::shape_mismatch);
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{.queries = some.queries, .classes = classes}) == Status::ok);
  REQUIRE(r.cache.capabilities().needs == (Input::queries | Input::classes));
}
