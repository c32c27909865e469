#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include <evict/driver.hpp>
#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/evict/keyformer.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/retrieve/alisa_window.hpp>
#include <kvcondense/retrieve/blocks/step_reads.hpp>
#include <kvcondense/retrieve/erased.hpp>
#include <retrieve/rig.hpp>
#include <support/byte_list.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using test::at;
using test::Ints;
using retrieve::AlisaWindow;

namespace {

constexpr CacheShape small{.layers = 1, .q_heads = 6, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 16};
constexpr AlisaWindow usual{.ratio = 0.4, .history = 5};

index_t near(double ratio, index_t n) { return std::max<index_t>(1, static_cast<index_t>(std::nearbyint(ratio * static_cast<double>(n) / 2))); }

/// The method as its paper has it, in double and one layer: rows [head][token][dim] of all tokens so far.
struct Naive {
  CacheShape shape;
  AlisaWindow method;
  std::vector<std::vector<std::vector<double>>> keys{}, values{}, queries{};

  std::vector<double> row(index_t q_head, index_t query, const Ints& tokens) const {
    std::vector<double> p;
    double sum = 0;
    for (const index_t t : tokens) {
      double z = 0;
      for (index_t d = 0; d < shape.head_dim; ++d) z += queries[at(q_head)][at(query)][at(d)] * keys[at(q_head / shape.group())][at(t)][at(d)];
      const double scale = shape.softmax_scale != 0.0f ? static_cast<double>(shape.softmax_scale) : 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
      sum += p.emplace_back(std::exp(z * scale));
    }
    for (double& x : p) x /= sum;
    return p;
  }
  static Ints first(index_t n) {
    Ints all(at(n));
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  /// What the newest queries of the first n tokens give to each of them.
  std::vector<double> sums(index_t n) const {
    std::vector<double> s(at(n), 0.0);
    for (index_t i = n - std::min({near(method.ratio, n), method.history, n}); i < n; ++i)
      for (index_t h = 0; h < shape.q_heads; ++h) {
        const auto p = row(h, i, first(i + 1));
        for (std::size_t j = 0; j < p.size(); ++j) s[j] += p[j];
      }
    return s;
  }
  /// What the next query reads of the first n tokens.
  Ints chosen(index_t n) const {
    const index_t k = near(method.ratio, n), far = std::max<index_t>(0, n - k);
    const auto s = sums(n);
    Ints order = first(far);
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return s[at(a)] > s[at(b)]; });
    order.resize(at(std::min(far, k)));
    for (index_t j = far; j < n; ++j) order.push_back(j);
    std::sort(order.begin(), order.end());
    return order;
  }
};

/// A cache and the naive method over the same tokens.
template <class R>
struct Pair {
  CacheShape shape;
  test::CacheRig<R> rig;
  Naive naive;
  std::mt19937 random{11};

  Pair(const CacheShape& s, const AlisaWindow& method, const R& recipe) : shape(s), rig(s, recipe, 256, 64), naive{s, method} {
    naive.keys.resize(at(s.kv_heads)), naive.values.resize(at(s.kv_heads)), naive.queries.resize(at(s.q_heads));
  }
  void remember(const test::Tokens& t) {
    const auto copy = [&](auto& to, const auto& from) {
      for (index_t h = 0; h < from.extent[0]; ++h)
        for (index_t i = 0; i < t.n; ++i) {
          auto& row = to[at(h)].emplace_back();
          for (index_t d = 0; d < from.extent[2]; ++d) row.push_back(static_cast<double>(from(h, i, d)));
        }
    };
    copy(naive.keys, t.keys(shape)), copy(naive.values, t.values(shape)), copy(naive.queries, t.queries(shape));
  }
  /// Tokens come; one alone is compared with the naive method, slots and outputs.
  void forward(index_t n) {
    const index_t before = rig.cache.length(), room = before + n;
    const test::Tokens t(shape, n, random, 2.0f);
    remember(t);
    std::vector<float> out(at(shape.q_heads * n * shape.values()));
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    std::vector<SlotRun> runs(at(shape.q_heads * room));
    std::vector<index_t> count(at(shape.q_heads));
    REQUIRE(rig.cache.attend(rig.ctx, 0, t.queries(shape), dense_view(out.data(), shape.q_heads, n, shape.values()), {.runs = {runs.data(), room, count.data()}}) ==
            Status::ok);
    Ints want = n == 1 ? naive.chosen(before) : Naive::first(before);
    for (index_t i = 0; i < n; ++i) want.push_back(before + i);
    for (index_t h = 0; h < shape.q_heads; ++h) {
      Ints got;
      for (index_t i = 0; i < count[at(h)]; ++i)
        for (index_t slot = runs[at(h * room + i)].first; slot < runs[at(h * room + i)].last; ++slot) got.push_back(slot);
      REQUIRE(got == want);
      if (n > 1) continue;
      const auto p = naive.row(h, before, want);
      for (index_t d = 0; d < shape.values(); ++d) {
        double sum = 0;
        for (std::size_t j = 0; j < p.size(); ++j) sum += p[j] * naive.values[at(h / shape.group())][at(want[j])][at(d)];
        REQUIRE(out[at(h * shape.values() + d)] == Approx(sum).margin(2e-5));
      }
    }
    REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = t.queries(shape)}) == Status::ok);
    REQUIRE(rig.cache.slots(0, 0) == rig.cache.length());  // nothing leaves
  }
};

/// The method behind a type that is only known at run time.
struct Erased {
  [[maybe_unused]] static constexpr Descriptor about{"erased", Stage::retrieve, "a test"};
  [[maybe_unused]] static constexpr retrieve::KeyState keys = AlisaWindow::keys;
  retrieve::AnyPipeline pipeline() const { return retrieve::AnyPipeline(usual.pipeline()); }
  Status validate(const CacheShape& shape) const { return usual.validate(shape); }
};

/// Outputs of the next tokens of a random sequence.
template <class Cache>
std::vector<float> forward(test::CacheRig<Cache>& rig, const CacheShape& shape, index_t n, std::mt19937& random) {
  const test::Tokens t(shape, n, random, 2.0f);
  std::vector<float> out(at(shape.q_heads * n * shape.values()));
  REQUIRE(rig.cache.forward(rig.ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), shape.q_heads, n, shape.values()), {}, Phase::automatic,
                            StepInputs{}) == Status::ok);
  return out;
}

template <class R>
test::CacheRig<R> rig_of(const CacheShape& shape, const R& recipe) {
  return {shape, recipe, 256, 64};
}

}  // namespace

TEST_CASE("alisa window: sums, the slots that are read and what attention makes of them equal the oracle", "[retrieve][alisa_window]") {
  const auto oracle = test::eviction_oracle("alisa_swa");
  const test::FX1 fx;
  const index_t n = oracle["params"]["n"];
  CacheShape shape = fx.shape;
  shape.softmax_scale = 0.5f, shape.value_dim = n + 1;  // values that name their tokens: outputs are probabilities
  const AlisaWindow method{.ratio = oracle["params"]["caching_ratio"]};
  auto rig = rig_of(shape, recipe(method));
  std::vector<float> k, v, q;
  for (index_t h = 0; h < 2; ++h)
    for (index_t t = 0; t <= n; ++t) {
      for (index_t d = 0; d < 4; ++d) k.push_back(static_cast<float>(fx.k(h, t, d)));
      for (index_t d = 0; d <= n; ++d) v.push_back(d == t ? 1.0f : 0.0f);
    }
  for (index_t h = 0; h < 4; ++h)
    for (index_t t = 0; t <= n; ++t)
      for (index_t d = 0; d < 4; ++d) q.push_back(static_cast<float>(fx.q(h, t, d)));
  const auto part = [&](const std::vector<float>& x, index_t heads, index_t dim, index_t first, index_t count) {
    auto view = dense_view(x.data(), heads, n + 1, dim);
    view.data += first * view.stride[1], view.extent[1] = count;
    return view;
  };
  REQUIRE(rig.cache.append(rig.ctx, 0, part(k, 2, 4, 0, n), part(v, 2, n + 1, 0, n)) == Status::ok);
  REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = part(q, 4, 4, 0, n)}, Phase::prefill_end) == Status::ok);
  const auto& index = rig.cache.layers()[0].index;
  for (index_t j = 0; j < n; ++j)
    REQUIRE(static_cast<double>(index[0].drawn[j] + index[1].drawn[j]) == Approx(oracle["local_attention_sum"][at(j)].get<double>()));

  REQUIRE(rig.cache.append(rig.ctx, 0, part(k, 2, 4, n, 1), part(v, 2, n + 1, n, 1)) == Status::ok);
  std::vector<float> out(at(4 * (n + 1)));
  SlotRun runs[4 * 9];
  index_t count[4];
  REQUIRE(rig.cache.attend(rig.ctx, 0, part(q, 4, 4, n, 1), dense_view(out.data(), 4, 1, n + 1), {.runs = {runs, 9, count}}) == Status::ok);
  Ints read = oracle["selected"].get<Ints>();
  read.push_back(n);
  for (index_t h = 0; h < 4; ++h) {
    Ints got;
    for (index_t i = 0; i < count[h]; ++i)
      for (index_t slot = runs[9 * h + i].first; slot < runs[9 * h + i].last; ++slot) got.push_back(slot);
    REQUIRE(got == read);
  }
  std::vector<double> want(at(n + 1), 0.0);
  for (std::size_t i = 0; i < read.size(); ++i) want[at(read[i])] = oracle["attn_query8_head0"][i].get<double>();
  for (index_t d = 0; d <= n; ++d) REQUIRE(static_cast<double>(out[at(d)]) == Approx(want[at(d)]).margin(1e-6));
}

TEST_CASE("alisa window: every token reads what a plain computation reads, in any group and head size", "[retrieve][alisa_window]") {
  for (const index_t group : {1, 3, 4, 7})
    for (const index_t dim : {16, 80}) {
      const CacheShape shape{.layers = 1, .q_heads = 2 * group, .kv_heads = 2, .head_dim = dim, .value_dim = dim / 2, .dtype = DType::f32, .page_slots = 16};
      CAPTURE(group, dim);
      Pair pair(shape, usual, recipe(usual));
      for (const index_t n : {1, 1, 1, 1, 20, 9, 1, 1, 3, 1, 1, 1, 1}) pair.forward(n);
    }
}

TEST_CASE("alisa window: what is not read at one token is read at another, and every knob has its say", "[retrieve][alisa_window]") {
  const auto choices = [](const AlisaWindow& method) {
    Pair pair(small, method, recipe(method));
    pair.forward(60);
    std::vector<Ints> all;
    for (int i = 0; i < 12; ++i) all.push_back(pair.naive.chosen(60 + i)), pair.forward(1);
    return all;
  };
  const auto all = choices(usual);
  index_t back = 0;
  for (std::size_t i = 2; i < all.size(); ++i)
    for (const index_t slot : all[i]) {
      const auto has = [&](std::size_t step) { return std::binary_search(all[step].begin(), all[step].end(), slot); };
      back += slot < 60 && !has(i - 1) && has(i - 2);
    }
  REQUIRE(back > 0);
  REQUIRE(all[0].size() == 24);
  REQUIRE(choices({.ratio = 0.2, .history = 5})[0].size() == 12);
  REQUIRE(choices({.ratio = 0.4, .history = 1}) != all);
  REQUIRE(choices({.ratio = 0.4, .history = 500}) != all);
}

TEST_CASE("alisa window: the part of everything is everything, and a prompt reads all", "[retrieve][alisa_window]") {
  auto dense = rig_of(small, recipe());
  auto whole = rig_of(small, recipe(AlisaWindow{.ratio = 1.0, .history = 3}));
  auto part = rig_of(small, recipe(usual));
  std::mt19937 a(3), b(3), c(3);
  for (const index_t n : {40, 4, 2, 1}) {  // an even number of slots in front of the last
    const auto want = forward(dense, small, n, a);
    REQUIRE(forward(whole, small, n, b) == want);
    REQUIRE((forward(part, small, n, c) == want) == (n > 1));
  }
}

TEST_CASE("alisa window: a fork, a file, another type and drafts that are taken back go on as if nothing had been", "[retrieve][alisa_window]") {
  auto plain = rig_of(small, recipe(usual)), forked = rig_of(small, recipe(usual)), loaded = rig_of(small, recipe(usual)), rolled = rig_of(small, recipe(usual));
  auto erased = rig_of(small, recipe(Erased{}));
  std::mt19937 random[5] = {std::mt19937(5), std::mt19937(5), std::mt19937(5), std::mt19937(5), std::mt19937(5)};
  for (const index_t n : {50, 1, 1, 4, 1, 1, 1}) {
    const auto want = forward(plain, small, n, random[0]);
    REQUIRE(forward(erased, small, n, random[1]) == want);
    auto fork = forked.cache.fork();
    REQUIRE(fork.status() == Status::ok);
    forked.cache = std::move(*fork);
    REQUIRE(forward(forked, small, n, random[2]) == want);
    test::ByteList file;
    REQUIRE(save(loaded.cache, file) == Status::ok);
    loaded.cache.reset();
    REQUIRE(load(loaded.cache, file.bytes) == Status::ok);
    REQUIRE(forward(loaded, small, n, random[3]) == want);
    std::mt19937 drafts(99);
    const test::Tokens t(small, 3, drafts);
    REQUIRE(rolled.cache.append(rolled.ctx, 0, t.keys(small), t.values(small)) == Status::ok);
    REQUIRE(rolled.cache.truncate(rolled.cache.length() - 3) == Status::ok);
    REQUIRE(forward(rolled, small, n, random[4]) == want);
  }
  // Stepped tokens that are taken back leave as many queries less, until there are as many again.
  std::mt19937 drafts(98);
  forward(rolled, small, 1, drafts), forward(rolled, small, 1, drafts);
  REQUIRE(rolled.cache.truncate(plain.cache.length()) == Status::ok);
  for (index_t i = 0; i < usual.history; ++i) forward(plain, small, 1, random[0]), forward(rolled, small, 1, random[4]);
  for (int i = 0; i < 3; ++i) REQUIRE(forward(plain, small, 1, random[0]) == forward(rolled, small, 1, random[4]));
}

TEST_CASE("alisa window: keys that are stored without rotation are chosen and read as those with it", "[retrieve][alisa_window]") {
  auto turned = rig_of(small, recipe(usual));
  auto raw = rig_of(small, recipe(position::Rerotate{}, usual));
  std::mt19937 a(8), b(8);
  for (const index_t n : {48, 1, 1, 1, 1}) {
    const auto want = forward(turned, small, n, a), got = forward(raw, small, n, b);
    for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(got[i] == Approx(want[i]).margin(3e-5));
  }
}

TEST_CASE("alisa window: behind a method that evicts sums stay with their slots, and heads of other lengths have no common set", "[retrieve][alisa_window]") {
  auto rig = rig_of(small, recipe(evict::SlidingWindow{.window = 30}, usual));
  std::mt19937 random(4);
  for (const index_t n : {50, 1, 1, 1}) forward(rig, small, n, random);
  const auto& layer = rig.cache.layers()[0];
  REQUIRE(rig.cache.slots(0, 0) == 30);
  for (const auto& i : layer.index) {
    REQUIRE(i.drawn.size() == 30);
    REQUIRE(std::accumulate(i.drawn.begin(), i.drawn.end(), 0.0f) > 1.0f);
  }
  // k of the slots that are there, not of the tokens so far.
  std::vector<float> q(at(6 * 16), 0.5f), out(at(6 * 16));
  ReadCounts reads;
  REQUIRE(rig.cache.attend(rig.ctx, 0, dense_view(q.data(), 6, 1, 16), dense_view(out.data(), 6, 1, 16), {.reads = &reads}) == Status::ok);
  REQUIRE(reads.slots_read == 2 * 2 * near(usual.ratio, 30));
  const auto told = retrieve::step_reads(usual, small, 30);
  REQUIRE((told.slots_least == static_cast<double>(reads.slots_read) && told.slots_most == told.slots_least));
  REQUIRE(told.index_bytes == static_cast<double>(reads.index_bytes));

  const float shares[] = {0.3f, 0.7f};
  auto uneven = rig_of(small, recipe(budget::HeadTableBudget{evict::Knorm{.tokens = 30, .recent = 4}, 1.0, HeadTable{shares, 1, 2}}, usual));
  std::mt19937 other(4);
  forward(uneven, small, 60, other);
  REQUIRE(uneven.cache.slots(0, 0) != uneven.cache.slots(0, 1));
  REQUIRE(uneven.cache.attend(uneven.ctx, 0, dense_view(q.data(), 6, 1, 16), dense_view(out.data(), 6, 1, 16)) == Status::not_supported);
}

TEST_CASE("alisa window: the queries that it keeps change nothing of what others count", "[retrieve][alisa_window]") {
  const evict::Keyformer policy{.tokens = 30, .recent = 10};
  auto alone = rig_of(small, recipe(policy));
  auto beside = rig_of(small, recipe(policy, usual));
  std::mt19937 random(6);
  for (const index_t n : {40, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}) {
    const test::Tokens t(small, n, random, 2.0f);
    REQUIRE(alone.cache.append(alone.ctx, 0, t.keys(small), t.values(small)) == Status::ok);
    REQUIRE(beside.cache.append(beside.ctx, 0, t.keys(small), t.values(small)) == Status::ok);
    REQUIRE(alone.cache.step(alone.ctx, 0, StepInputs{.queries = t.queries(small)}) == Status::ok);
    REQUIRE(beside.cache.step(beside.ctx, 0, StepInputs{.queries = t.queries(small)}) == Status::ok);
    for (index_t h = 0; h < 2; ++h) {
      REQUIRE(alone.cache.slots(0, h) == beside.cache.slots(0, h));
      for (index_t s = 0; s < alone.cache.slots(0, h); ++s) REQUIRE(alone.cache.token(0, h, s) == beside.cache.token(0, h, s));
    }
  }
}

TEST_CASE("alisa window: of equal sums the older slots are read, and sums that are no numbers are zero", "[retrieve][alisa_window]") {
  const CacheShape shape{.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 4, .dtype = DType::f32, .page_slots = 8};
  for (const float x : {0.0f, std::numeric_limits<float>::quiet_NaN()}) {
    auto rig = rig_of(shape, recipe(AlisaWindow{.ratio = 0.5}));
    const std::vector<float> zero(12 * 4, 0.0f), q(2 * 12 * 4, x);
    REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(zero.data(), 1, 12, 4), dense_view(zero.data(), 1, 12, 4)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = dense_view(q.data(), 2, 12, 4)}, Phase::prefill_end) == Status::ok);
    float out[8];
    SlotRun runs[2 * 12];
    index_t count[2];
    REQUIRE(rig.cache.attend(rig.ctx, 0, dense_view(zero.data(), 2, 1, 4), dense_view(out, 2, 1, 4), {.runs = {runs, 12, count}}) == Status::ok);
    REQUIRE(count[0] == 2);
    REQUIRE((runs[0].first == 0 && runs[0].last == 3 && runs[1].first == 9 && runs[1].last == 12));
    test::ByteList file;
    REQUIRE(save(rig.cache, file) == Status::ok);
    REQUIRE(load(rig.cache, file.bytes) == Status::ok);
  }
}

TEST_CASE("alisa window: a step wants as many queries as it keeps, no more", "[retrieve][alisa_window]") {
  auto rig = rig_of(small, recipe(usual));
  REQUIRE(rig.cache.capabilities().needs == Inputs(Input::queries));
  std::mt19937 random(2);
  const test::Tokens t(small, 20, random);
  REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(small), t.values(small)) == Status::ok);
  auto q = t.queries(small);
  q.data += 16 * q.stride[1], q.extent[1] = 4;
  REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{}) == Status::missing_input);
  REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = q}) == Status::missing_input);
  q.data -= q.stride[1], q.extent[1] = 5;
  REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = q}) == Status::ok);
}
