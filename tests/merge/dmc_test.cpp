#include <kvcondense/merge/dmc.hpp>

#include <cmath>
#include <limits>
#include <random>

#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/retrieve/quest.hpp>
#include <support/cache_rig.hpp>
#include <support/check_snapshot.hpp>
#include <support/naive_cache.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

using Row = std::vector<double>;
using merge::Dmc;

/// Turns pair t by position * frequency, in double.
Row turned(Row x, const prim::RopeAngles& a, double position) {
  const bool half = a.pairing == prim::RopePairing::half_split;
  for (index_t t = 0; t < a.pairs; ++t) {
    double &u = x[at(half ? t : 2 * t)], &v = x[at(half ? t + a.pairs : 2 * t + 1)];
    const double angle = position * static_cast<double>(a.frequency[t]), c = std::cos(angle), s = std::sin(angle);
    const double first = u * c - v * s;
    v = v * c + u * s, u = first;
  }
  return x;
}

/// The method as its paper's code runs it, in double: tokens as they are before rotation, one by one; a slot is summed anew
/// from its tokens every time.
struct Naive {
  struct Slot {
    index_t newest = 0;
    Row key, value;
  };

  CacheShape shape;
  Dmc method;
  prim::RopeAngles angles{};
  std::vector<std::vector<Slot>> slots;  ///< per head
  std::vector<std::vector<std::pair<std::pair<Row, Row>, double>>> segment;

  Naive(const CacheShape& s, const Dmc& m) : shape(s), method(m), slots(at(s.kv_heads)), segment(at(s.kv_heads)) {
    if (m.rotated) angles = *prim::rope_angles(m.rope, s.head_dim);
  }

  index_t control() const { return method.first ? 0 : shape.head_dim - 1; }

  /// Attention of the token, [q_heads, values].
  Row step(const Tokens& t, index_t i, index_t token, index_t position) {
    Row out;
    const index_t group = shape.group(), c = control();
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      double logit = 0;
      std::vector<Row> q;
      for (index_t g = 0; g < group; ++g) {
        q.push_back(row(t.queries(shape), h * group + g, i));
        logit += q.back()[at(c)] / static_cast<double>(group);
        q.back()[at(c)] = 0;
        q.back() = turned(q.back(), angles, static_cast<double>(position));
        q.back()[at(c)] = 0;
      }
      Row k = row(t.keys(shape), h, i);
      auto &own = segment[at(h)];
      auto &mine = slots[at(h)];
      const bool joins = !mine.empty() && k[at(c)] > static_cast<double>(method.init);
      k[at(c)] = 0;
      if (!joins) own.clear(), mine.emplace_back();
      own.push_back({{k, row(t.values(shape), h, i)}, 1 / (1 + std::exp(-logit - static_cast<double>(method.init))) + static_cast<double>(method.slack)});
      const std::size_t n = own.size(), first = method.window > 0 && n > at(method.window) ? n - at(method.window) : 0;
      Slot s{token, Row(at(shape.head_dim)), Row(at(shape.values()))};
      double sum = 0;
      for (std::size_t j = first; j < n; ++j) sum += own[j].second;
      for (std::size_t j = first; j < n; ++j) {
        for (std::size_t d = 0; d < s.key.size(); ++d) s.key[d] += own[j].second / sum * own[j].first.first[d];
        for (std::size_t d = 0; d < s.value.size(); ++d) s.value[d] += own[j].second / sum * own[j].first.second[d];
      }
      s.key = turned(s.key, angles, static_cast<double>(position));
      s.key[at(c)] = 0;
      mine.back() = s;
      std::vector<NaiveSlot> all;
      for (const Slot& x : mine) all.push_back({x.newest, x.key, x.value});
      for (const Row& x : q) {
        const Row o = naive_attention(x, all, static_cast<index_t>(all.size()), 1 / std::sqrt(static_cast<double>(shape.head_dim)), at(shape.values()));
        out.insert(out.end(), o.begin(), o.end());
      }
    }
    return out;
  }

  static Row row(const TensorView<const float, 3>& x, index_t h, index_t i) {
    Row r;
    for (index_t d = 0; d < x.extent[2]; ++d) r.push_back(static_cast<double>(x(h, i, d)));
    return r;
  }
};

/// Random tokens of which about half join the slot before them.
Tokens trained(const CacheShape& s, const Dmc& m, index_t n, std::mt19937& random) {
  Tokens t(s, n, random);
  const index_t c = m.first ? 0 : s.head_dim - 1;
  std::normal_distribution<float> normal;
  for (index_t h = 0; h < s.kv_heads; ++h)
    for (index_t i = 0; i < n; ++i) t.k[at((h * n + i) * s.head_dim + c)] = m.init + (normal(random) < 0.3f ? 1.0f : -1.0f);
  for (index_t h = 0; h < s.q_heads; ++h)
    for (index_t i = 0; i < n; ++i) t.q[at((h * n + i) * s.head_dim + c)] = -m.init + 2.0f * normal(random);
  return t;
}

/// As an engine hands it over: queries and keys turned to positions first, first + 1, ...
Tokens as_engine(const CacheShape& s, Tokens t, const prim::RopeAngles& a, index_t first) {
  const auto turn = [&](std::vector<float>& x, index_t heads) {
    for (index_t h = 0; h < heads; ++h)
      for (index_t i = 0; i < t.n; ++i) {
        float* row = x.data() + (h * t.n + i) * s.head_dim;
        const Row r = turned(Row(row, row + s.head_dim), a, static_cast<double>(first + i));
        for (index_t d = 0; d < s.head_dim; ++d) row[d] = static_cast<float>(r[at(d)]);
      }
  };
  turn(t.k, s.kv_heads), turn(t.q, s.q_heads);
  return t;
}

Tokens slice(const CacheShape& s, const Tokens& t, index_t first, index_t n) {
  std::mt19937 none(0);
  Tokens r(s, n, none);
  const auto take = [&](const std::vector<float>& x, std::vector<float>& to, index_t heads, index_t dim) {
    for (index_t h = 0; h < heads; ++h) std::copy_n(x.data() + (h * t.n + first) * dim, n * dim, to.data() + h * n * dim);
  };
  take(t.k, r.k, s.kv_heads, s.head_dim), take(t.v, r.v, s.kv_heads, s.values()), take(t.q, r.q, s.q_heads, s.head_dim);
  return r;
}

template <class Rig>
Floats forward(Rig& r, const Tokens& t) {
  const CacheShape& s = r.cache.shape();
  Floats out(at(s.q_heads * t.n * s.values()));
  REQUIRE(r.cache.forward(r.ctx, 0, t.queries(s), t.keys(s), t.values(s), dense_view(out.data(), s.q_heads, t.n, s.values()), {}, Phase::automatic,
                          {}) == Status::ok);
  return out;
}

template <class C>
std::vector<std::byte> file_of(const C& cache) {
  ByteList file;
  REQUIRE(save(cache, file) == Status::ok);
  return file.bytes;
}

/// Everything that a layer's heads hold. (Room in pages that was written and taken back keeps its bytes.)
template <class C>
Floats held(const C& cache) {
  Floats all;
  for (const auto& head : cache.layers()[0].heads) {
    const index_t n = head.slots(), k = head.keys.dim(), v = head.values.dim();
    Floats rows(at(n * (k + v)));
    head.keys.decode_from(0, {rows.data(), n, k});
    head.values.decode_from(0, {rows.data() + n * k, n, v});
    for (index_t j = 0; j < n; ++j) all.push_back(static_cast<float>(head.ids[j]));
    all.insert(all.end(), rows.begin(), rows.end());
    all.insert(all.end(), head.open.rows().begin(), head.open.rows().end());
    all.push_back(static_cast<float>(head.open.settled())), all.push_back(static_cast<float>(head.open.token()));
  }
  return all;
}

/// Whether files are the same, without printing them.
bool same(const std::vector<std::byte>& a, const std::vector<std::byte>& b) { return a == b; }

/// Tokens of both kinds through a cache, in calls of the given sizes, against the naive one.
void compare(const CacheShape& s, const Dmc& m, const std::vector<index_t>& calls, index_t first_position = 0) {
  CAPTURE(s.q_heads, s.kv_heads, s.head_dim, s.values(), m.window, m.first, m.rotated);
  REQUIRE(m.validate(s) == Status::ok);
  std::mt19937 random(static_cast<unsigned>(s.head_dim + s.q_heads));
  CacheRig rig(s, recipe(m), 256, 64);
  Naive naive(s, m);
  index_t seen = 0, joined = 0;
  for (const index_t n : calls) {
    const Tokens raw = trained(s, m, n, random), t = m.rotated ? as_engine(s, raw, naive.angles, first_position + seen) : raw;
    std::vector<index_t> positions;
    for (index_t i = 0; i < n; ++i) positions.push_back(first_position + seen + i);
    Floats out(at(s.q_heads * n * s.values()));
    const auto view = dense_view(out.data(), s.q_heads, n, s.values());
    REQUIRE(rig.cache.forward(rig.ctx, 0, t.queries(s), t.keys(s), t.values(s), view, positions) == Status::ok);
    for (index_t i = 0; i < n; ++i) {
      const Row want = naive.step(raw, i, seen + i, first_position + seen + i);
      for (index_t h = 0; h < s.q_heads; ++h)
        for (index_t d = 0; d < s.values(); ++d) REQUIRE(view(h, i, d) == Approx(want[at(h * s.values() + d)]).margin(2e-5));
    }
    seen += n;
    for (index_t h = 0; h < s.kv_heads; ++h) {
      const auto& want = naive.slots[at(h)];
      const auto count = static_cast<index_t>(want.size());
      REQUIRE(rig.cache.slots(0, h) == count);
      Floats k(at(count * s.head_dim)), v(at(count * s.values()));
      REQUIRE(rig.cache.read(0, h, 0, dense_view(k.data(), count, s.head_dim), dense_view(v.data(), count, s.values())) == Status::ok);
      for (index_t j = 0; j < count; ++j) {
        REQUIRE(rig.cache.token(0, h, j) == want[at(j)].newest);
        for (index_t d = 0; d < s.head_dim; ++d) REQUIRE(k[at(j * s.head_dim + d)] == Approx(want[at(j)].key[at(d)]).margin(2e-5));
        for (index_t d = 0; d < s.values(); ++d) REQUIRE(v[at(j * s.values() + d)] == Approx(want[at(j)].value[at(d)]).margin(1e-5));
      }
    }
  }
  for (index_t h = 0; h < s.kv_heads; ++h) joined += seen - rig.cache.slots(0, h);
  REQUIRE(joined > 0);
  REQUIRE(rig.cache.report().merged_slots == joined);
  REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
}

const CacheShape small{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32};

}  // namespace

TEST_CASE("dmc: the oracle's recurrence, with its sums of weights", "[merge][dmc]") {
  const auto o = merging_oracle("dmc");
  const auto k = rows_of(o["inputs"]["k"]), v = rows_of(o["inputs"]["v"]);
  for (const bool every_step : {true, false}) {
    cache::OpenSlot open(2, 2, heap_memory());
    FloatRows keys, values;
    Floats weights;
    for (std::size_t i = 0; i < k.size(); ++i) {
      Floats key = k[i], value = v[i];
      REQUIRE(open.reserve(1) == Status::ok);
      const bool joins = o["inputs"]["alpha"][i].get<int>() == 1;
      open.add(key.data(), value.data(), o["inputs"]["omega"][i].get<float>(), joins, 0);
      if (!joins) keys.emplace_back(), values.emplace_back(), weights.push_back(0.0f);
      keys.back() = key, values.back() = value;
      weights.back() += o["inputs"]["omega"][i].get<float>();
      if (!every_step) continue;
      open.settle(static_cast<index_t>(i), 0);
      REQUIRE(open.tokens() == 1);  // the mean and its weight
      REQUIRE(open.rows()[4] == Approx(weights.back()));
    }
    require_rows(keys, rows_of(o["expected"]["K"]), 1e-6);
    require_rows(values, rows_of(o["expected"]["V"]), 4e-6);
    for (std::size_t i = 0; i < weights.size(); ++i) REQUIRE(weights[i] == Approx(o["expected"]["z"][i].get<double>()));
  }
}

TEST_CASE("dmc: the oracle of the published code, token by token and in one call", "[merge][dmc]") {
  const auto o = merging_oracle("dmc_windowed");
  const CacheShape s{.q_heads = 1, .kv_heads = 1, .head_dim = 4, .dtype = DType::f32};
  const Dmc m{.window = o["params"]["window"].get<index_t>(), .init = o["params"]["init_val"].get<float>(), .slack = o["params"]["eps"].get<float>()};
  std::mt19937 random(1);
  Tokens raw(s, 6, random);
  raw.q = floats(o["inputs"]["q"]), raw.k = floats(o["inputs"]["k"]), raw.v = floats(o["inputs"]["v"]);
  const Tokens t = as_engine(s, raw, *prim::rope_angles(m.rope, 4), 0);
  const auto read = [&](auto& rig, const nlohmann::json& keys, const nlohmann::json& values) {
    const index_t n = rig.cache.slots(0, 0);
    REQUIRE(n == static_cast<index_t>(keys.size()));
    Floats k(at(n * 4)), v(at(n * 4));
    REQUIRE(rig.cache.read(0, 0, 0, dense_view(k.data(), n, 4), dense_view(v.data(), n, 4)) == Status::ok);
    const Floats want_k = floats(keys), want_v = floats(values);
    for (std::size_t i = 0; i < k.size(); ++i) REQUIRE((k[i] == Approx(want_k[i]).margin(2e-6) && v[i] == Approx(want_v[i]).margin(2e-6)));
  };
  CacheRig one(s, recipe(m), 16, 8), all(s, recipe(m), 16, 8);
  const prim::JoinGate gate = m.pipeline().traits().gate;
  for (const auto& step : o["expected"]["trace"]) {
    const auto i = step["step"].get<index_t>();
    forward(one, slice(s, t, i, 1));
    REQUIRE(one.cache.slots(0, 0) == step["slots"].get<index_t>());
    REQUIRE(gate.weight(raw.q[at(i * 4 + 3)]) == Approx(step["omega"].get<double>()));
    REQUIRE((i > 0 && gate.joins(raw.k[at(i * 4 + 3)])) == (step["alpha"].get<int>() == 1));
    Floats k(4), v(4);
    REQUIRE(one.cache.read(0, 0, one.cache.slots(0, 0) - 1, dense_view(k.data(), 1, 4), dense_view(v.data(), 1, 4)) == Status::ok);
    require_rows({k, v}, {step["k_slot_stored"].get<Floats>(), step["v_slot"].get<Floats>()}, 2e-6);
  }
  forward(all, t);
  for (auto* rig : {&one, &all}) {
    read(*rig, o["expected"]["K_cache"], o["expected"]["V_cache"]);
    for (index_t j = 0; j < 2; ++j) REQUIRE(rig->cache.token(0, 0, j) == o["expected"]["slot_positions"][at(j)].get<index_t>());
  }
  REQUIRE(file_of(one.cache).size() == file_of(all.cache).size());
}

TEST_CASE("dmc: the oracle of what each token of a prompt sees", "[merge][dmc]") {
  const auto o = merging_oracle("dmc_parallel_prefill_mask");
  const Dmc m{};
  const CacheShape s{.q_heads = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::f32};
  std::mt19937 random(2);
  Tokens t(s, 6, random);
  for (index_t i = 0; i < 6; ++i) t.k[at(i * 8 + 7)] = o["inputs"]["alpha"][at(i)].get<int>() == 1 ? 6.0f : 4.0f;
  t = as_engine(s, t, *prim::rope_angles(m.rope, 8), 0);
  for (const bool earlier : {false, true}) {  // the first three tokens in a step of their own
    CacheRig rig(s, recipe(m), 16, 8);
    const index_t from = earlier ? 3 : 0;
    if (earlier) forward(rig, slice(s, t, 0, 3));
    const Tokens rest = slice(s, t, from, 6 - from);
    REQUIRE(rig.cache.append(rig.ctx, 0, rest.keys(s), rest.values(s), {}, rest.queries(s)) == Status::ok);
    const auto& head = rig.cache.layers()[0].heads[0];
    const cache::HeadReader<std::remove_cvref_t<decltype(head)>> reader{&head, {}};
    for (index_t i = from; i < 6; ++i) {
      const index_t visible = head.ids.below(i + 1);
      Floats logits(at(visible), 0.0f);
      reader.hide(visible, 0, visible, logits.data());
      std::vector<bool> sees(at(i + 1), false);
      for (index_t j = 0; j < visible; ++j) sees[at(head.ids[j])] = logits[at(j)] == 0.0f;
      REQUIRE(sees == o["expected"]["visible"][at(i)].get<std::vector<bool>>());
      REQUIRE(std::count(sees.begin(), sees.end(), true) == o["expected"]["slots"][at(i)].get<index_t>());
    }
  }
}

TEST_CASE("dmc: what a cache holds and attends to is what the recurrence says, for any heads and calls", "[merge][dmc]") {
  const std::vector<index_t> calls{1, 9, 1, 1, 30, 2, 1};
  for (const auto& [group, dim] : {std::pair<index_t, index_t>{1, 64}, {2, 80}, {3, 96}, {5, 112}, {8, 128}, {16, 256}})
    compare({.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim, .dtype = DType::f32}, {}, calls);
  const CacheShape other{.q_heads = 6, .kv_heads = 3, .head_dim = 32, .value_dim = 24, .dtype = DType::f32, .page_slots = 8};
  for (const index_t window : {0, 1, 3, 12}) compare(other, {.window = window}, calls, 1000);
  compare(other, {.window = 4, .first = true}, calls);
  compare(other, {.window = 4, .rotated = false}, calls);
  compare(other, {.window = 4, .init = 0.5f, .slack = 0.0f, .rope = {.pairing = prim::RopePairing::interleaved}}, calls, 77);
  compare(other, {.window = 4, .first = true, .rope = {.pairing = prim::RopePairing::interleaved}}, calls);
  compare(other, {.window = 4, .rope = {.rotary_dim = 16}}, calls);  // the last component does not turn
  compare(other, {.window = 4}, {50, 60});                           // prompts in chunks
}

TEST_CASE("dmc: the attention factor of a rotation is no part of the decision", "[merge][dmc]") {
  const Dmc m{.rope = {.scaling = prim::RopeScaling::yarn, .factor = 8.0}};
  const CacheShape s{.q_heads = 1, .kv_heads = 1, .head_dim = 64, .dtype = DType::f32};
  const auto angles = *prim::rope_angles(m.rope, 64);
  REQUIRE(angles.attention_factor > 1.1f);
  std::mt19937 random(3);
  Tokens t = trained(s, m, 40, random);
  index_t slots = 0;
  for (index_t i = 0; i < 40; ++i) slots += i == 0 || t.k[at(i * 64 + 63)] < m.init;
  t = as_engine(s, t, angles, 0);
  for (float& x : t.k) x *= angles.attention_factor;
  for (float& x : t.q) x *= angles.attention_factor;
  CacheRig rig(s, recipe(m), 64, 64);
  forward(rig, t);
  REQUIRE(rig.cache.slots(0, 0) == slots);
}

TEST_CASE("dmc: a token that joins takes no room", "[merge][dmc]") {
  const Dmc m{.rotated = false};
  CacheRig rig(small, recipe(m), 64, 64);
  std::mt19937 random(4);
  Tokens t = trained(small, m, 40, random);
  for (index_t h = 0; h < 2; ++h)
    for (index_t i = 0; i < 40; ++i) t.k[at((h * 40 + i) * 16 + 15)] = 9.0f;
  forward(rig, t);
  const auto pages = rig.cache.report().exact_bytes, all = rig.memory.live_bytes;
  for (int i = 0; i < 300; ++i) forward(rig, slice(small, t, i % 40, 1));
  REQUIRE(rig.cache.slots(0, 0) == 1);
  REQUIRE(rig.cache.slots(0, 1) == 1);
  REQUIRE(rig.cache.report().exact_bytes <= 2 * pages);  // a spare page per column
  REQUIRE(rig.memory.live_bytes <= all + pages);
  REQUIRE(rig.cache.length() == 340);
}

TEST_CASE("dmc: tokens that no step has seen can be taken back bit for bit, whatever they joined", "[merge][dmc]") {
  for (const index_t window : {0, 3, 12}) {
    const Dmc m{.window = window, .rotated = false};
    std::mt19937 random(5);
    CacheRig drafted(small, recipe(m), 128, 32), straight(small, recipe(m), 128, 32);
    const Tokens prompt = trained(small, m, 20, random);
    forward(drafted, prompt), forward(straight, prompt);
    REQUIRE(held(drafted.cache) == held(straight.cache));
    const Tokens next = trained(small, m, 6, random), other = trained(small, m, 5, random);
    const auto append = [&](auto& rig, const Tokens& t) {
      REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(small), t.values(small), {}, t.queries(small)) == Status::ok);
      Floats out(at(4 * t.n * 16));
      REQUIRE(rig.cache.attend(rig.ctx, 0, t.queries(small), dense_view(out.data(), 4, t.n, 16)) == Status::ok);
      return out;
    };
    append(drafted, other);
    REQUIRE(drafted.cache.truncate(20) == Status::ok);
    REQUIRE(held(drafted.cache) == held(straight.cache));
    append(drafted, slice(small, next, 0, 2)), append(drafted, other);
    REQUIRE(drafted.cache.truncate(22) == Status::ok);
    const Floats two = append(drafted, slice(small, next, 2, 4));
    REQUIRE(drafted.cache.step(drafted.ctx, 0) == Status::ok);
    const Floats six = forward(straight, next);
    for (index_t h = 0; h < 4; ++h)
      for (index_t i = 0; i < 4 * 16; ++i) REQUIRE(two[at(h * 64 + i)] == six[at(h * 96 + 32 + i)]);
    REQUIRE(held(drafted.cache) == held(straight.cache));
  }
}

TEST_CASE("dmc: forks and files go on as the cache does, and files of another window are refused", "[merge][dmc]") {
  const CacheShape s{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32};
  // Components near zero, so that random tokens are of both kinds.
  check_snapshot(s, recipe(Dmc{.window = 5, .init = 0.0f}), recipe(Dmc{.window = 6, .init = 0.0f}));
  check_snapshot(s, recipe(Dmc{.window = 0, .init = 0.0f}), recipe(evict::KeepAll{}));

  const auto one = recipe(Dmc{.init = 0.0f});
  CacheRig rig(s, one, 64, 64), copy(s, one, 64, 64);
  std::mt19937 random(6);
  const Tokens t(s, 9, random);
  for (index_t l = 0; l < 2; ++l)
    REQUIRE(rig.cache.append(rig.ctx, l, t.keys(s), t.values(s), {}, t.queries(s)) == Status::ok);
  const auto file = file_of(rig.cache);  // with pending tokens
  REQUIRE(load(copy.cache, file) == Status::ok);
  REQUIRE(same(file_of(copy.cache), file));
  for (auto* c : {&rig.cache, &copy.cache})
    for (index_t l = 0; l < 2; ++l) REQUIRE(c->step(rig.ctx, l) == Status::ok);
  REQUIRE(same(file_of(copy.cache), file_of(rig.cache)));
}

TEST_CASE("dmc: after tokens that a step has seen are gone, the next one opens a slot", "[merge][dmc]") {
  const Dmc m{.rotated = false};
  std::mt19937 random(7);
  Tokens joins = trained(small, m, 6, random);
  for (index_t h = 0; h < 2; ++h)
    for (index_t i = 0; i < 6; ++i) joins.k[at((h * 6 + i) * 16 + 15)] = 9.0f;
  CacheRig cut(small, recipe(m), 64, 32), gone(small, recipe(m), 64, 32);
  forward(cut, joins), forward(gone, joins);
  REQUIRE(cut.cache.truncate(5) == Status::ok);
  REQUIRE(cut.cache.slots(0, 0) == 0);
  REQUIRE(gone.cache.remove(gone.ctx, 5, 6) == Status::ok);
  REQUIRE(gone.cache.slots(0, 0) == 0);
  const Tokens next = slice(small, joins, 0, 2);
  for (auto* rig : {&cut, &gone}) {
    forward(*rig, next);
    REQUIRE(rig->cache.slots(0, 0) == 1);
    CacheRig fresh(small, recipe(m), 64, 32);
    forward(fresh, next);
    Floats a(32), b(32);
    for (auto [r, to] : {std::pair{rig, &a}, std::pair{&fresh, &b}})
      REQUIRE(r->cache.read(0, 0, 0, dense_view(to->data(), 1, 16), dense_view(to->data() + 16, 1, 16)) == Status::ok);
    REQUIRE(a == b);
  }
}

TEST_CASE("dmc: bad input is refused and nothing is lost", "[merge][dmc]") {
  for (const Dmc& bad : {Dmc{.window = -1}, Dmc{.init = NAN}, Dmc{.slack = -0.1f}, Dmc{.slack = INFINITY}, Dmc{.rope = {.rotary_dim = 3}}})
    REQUIRE(bad.validate(small) == Status::invalid_argument);
  REQUIRE(Dmc{.rotated = false, .rope = {.rotary_dim = 3}}.validate(small) == Status::ok);
  const Dmc m{};
  CacheRig rig(small, recipe(m), 64, 32);
  REQUIRE(rig.cache.capabilities().joins_tokens);
  std::mt19937 random(8);
  const Tokens t = trained(small, m, 7, random);
  forward(rig, t);
  const auto before = file_of(rig.cache);
  const auto held_before = held(rig.cache);
  auto& c = rig.cache;
  REQUIRE(c.append(rig.ctx, 0, t.keys(small), t.values(small)) == Status::missing_input);
  REQUIRE(c.append(rig.ctx, 0, t.keys(small), t.values(small), {}, slice(small, t, 0, 6).queries(small)) == Status::shape_mismatch);
  Tokens poisoned = t;
  poisoned.q[at(3 * 16 + 15)] = NAN;
  REQUIRE(c.append(rig.ctx, 0, t.keys(small), t.values(small), {}, poisoned.queries(small)) == Status::invalid_argument);
  poisoned = t, poisoned.k[5] = NAN;
  REQUIRE(c.append(rig.ctx, 0, poisoned.keys(small), t.values(small), {}, t.queries(small)) == Status::invalid_argument);
  REQUIRE(same(file_of(c), before));
  bool refused = false;
  for (int i = 0; i < 40 && !refused; ++i) {
    const auto now = file_of(c);
    rig.memory.refuse_from = rig.memory.requests;
    const Status s = c.append(rig.ctx, 0, t.keys(small), t.values(small), {}, t.queries(small));
    rig.memory.refuse_from = -1;
    refused = s == Status::out_of_memory;
    if (refused) REQUIRE(same(file_of(c), now));
  }
  REQUIRE(refused);
  REQUIRE(c.truncate(7) == Status::ok);
  REQUIRE(held(c) == held_before);
  const auto emptied = file_of(c);
  const Tokens none = slice(small, t, 0, 0);
  REQUIRE(c.append(rig.ctx, 0, none.keys(small), none.values(small), {}, none.queries(small)) == Status::ok);
  REQUIRE(same(file_of(c), emptied));
}

TEST_CASE("dmc: a turned mean beyond the stored type becomes its largest number", "[merge][dmc]") {
  const CacheShape s{.q_heads = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::f16};
  CacheRig rig(s, recipe(Dmc{}), 16, 8);
  std::mt19937 random(9);
  Tokens t(s, 2, random);
  for (float& x : t.k) x = 65000.0f;  // both of a pair: after joining they stand elsewhere, and one is longer
  forward(rig, t);
  REQUIRE(rig.cache.slots(0, 0) == 1);
  REQUIRE(rig.cache.report().repaired_numbers > 0);
  Floats k(8), v(8);
  REQUIRE(rig.cache.read(0, 0, 0, dense_view(k.data(), 1, 8), dense_view(v.data(), 1, 8)) == Status::ok);
  for (const float x : k) REQUIRE(std::fabs(x) <= 65504.0f);
}

TEST_CASE("dmc: means and turned keys beyond float32 become its largest numbers, and the file can be read again", "[merge][dmc]") {
  const CacheShape s{.q_heads = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::f32};
  for (const Dmc& m : {Dmc{.window = 0, .init = -10.0f, .rotated = false}, Dmc{.window = 0, .init = -10.0f}, Dmc{.init = -10.0f}}) {
    CAPTURE(m.window, m.rotated);
    CacheRig rig(s, recipe(m), 16, 8), copy(s, recipe(m), 16, 8);
    std::mt19937 random(9);
    Tokens t(s, 3, random);
    for (index_t i = 0; i < 3 * 8; ++i) t.k[at(i)] = i % 4 == 3 ? 0.0f : 3e38f;  // the component lets all join, turned or not
    for (index_t i = 0; i < 3 * 8; ++i) t.v[at(i)] = i / 8 % 2 == 0 ? 3e38f : -3e38f;  // a distance of Inf
    if (!m.rotated) t.k = t.v, t.k[7] = t.k[15] = t.k[23] = 0.0f;
    forward(rig, slice(s, t, 0, 1)), forward(rig, slice(s, t, 1, 2));
    REQUIRE(rig.cache.slots(0, 0) == 1);
    REQUIRE(rig.cache.report().repaired_numbers > 0);
    const auto file = file_of(rig.cache);
    REQUIRE(load(copy.cache, file) == Status::ok);
    REQUIRE(same(file_of(copy.cache), file));
    forward(copy, slice(s, t, 0, 2));
    Floats k(8), v(8);
    REQUIRE(copy.cache.read(0, 0, 0, dense_view(k.data(), 1, 8), dense_view(v.data(), 1, 8)) == Status::ok);
    for (const float x : k) REQUIRE(std::isfinite(x));
    for (const float x : v) REQUIRE(std::isfinite(x));
  }
}

TEST_CASE("dmc: every setting changes the result", "[merge][dmc]") {
  const CacheShape& s = small;
  const auto result = [&](const Dmc& m) {
    CacheRig rig(s, recipe(m), 64, 64);
    std::mt19937 random(10);
    Tokens t(s, 40, random, 2.0f);
    Floats all = forward(rig, t);
    for (index_t h = 0; h < 2; ++h) all.push_back(static_cast<float>(rig.cache.slots(0, h)));
    return all;
  };
  const Dmc base{.window = 3, .init = 0.5f};
  Dmc m = base;
  const Floats want = result(base);
  REQUIRE(result(m) == want);
  m = base, m.window = 4;
  REQUIRE(result(m) != want);
  m = base, m.init = 0.8f;
  REQUIRE(result(m) != want);
  m = base, m.slack = 0.3f;
  REQUIRE(result(m) != want);
  m = base, m.first = true;
  REQUIRE(result(m) != want);
  m = base, m.rotated = false;
  REQUIRE(result(m) != want);
  m = base, m.rope.base = 500.0;
  REQUIRE(result(m) != want);
}

TEST_CASE("dmc: raw keys are averaged as they are, and both ways of handing them over agree", "[merge][dmc]") {
  const Dmc m{.window = 4};
  std::mt19937 random(11);
  CacheRig raw(small, recipe(m, position::Reindex{}), 128, 64);
  CacheRig turned_in(small, recipe(m, position::Rerotate{}), 128, 64);
  const auto angles = *prim::rope_angles({}, 16);
  index_t seen = 0;
  for (const index_t n : {30, 1, 1, 7}) {
    const Tokens t = trained(small, m, n, random);
    const Floats a = forward(raw, t), b = forward(turned_in, as_engine(small, t, angles, seen));
    for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(a[i] == Approx(b[i]).margin(3e-5));
    seen += n;
  }
  REQUIRE(raw.cache.slots(0, 0) < seen);
  REQUIRE(raw.cache.slots(0, 0) == turned_in.cache.slots(0, 0));
  Floats k(16), v(16);
  REQUIRE(raw.cache.read(0, 0, 1, dense_view(k.data(), 1, 16), dense_view(v.data(), 1, 16)) == Status::ok);
  REQUIRE(k[15] == 0.0f);
}

TEST_CASE("dmc: works with eviction, codes and retrieval", "[merge][dmc]") {
  const Dmc m{.window = 4};
  const CacheShape s{.q_heads = 4, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32, .page_slots = 16};
  std::mt19937 random(12);
  std::vector<Tokens> text;
  const auto angles = *prim::rope_angles({}, 32);
  index_t seen = 0;
  for (const index_t n : {60, 1, 1, 3, 20, 1}) text.push_back(as_engine(s, trained(s, m, n, random), angles, seen)), seen += n;
  const auto run = [&](const auto& with, std::vector<Floats>* outs = nullptr) {
    CacheRig rig(s, with, 128, 64);
    for (const Tokens& t : text) {
      const Floats out = forward(rig, t);
      if (outs != nullptr) outs->push_back(out);
    }
    return rig.cache.report();
  };
  std::vector<Floats> plain, chosen;
  const Report alone = run(recipe(m), &plain);
  REQUIRE(alone.slots < 2 * seen);
  REQUIRE(alone.slots + alone.merged_slots == 2 * seen);
  // A choice of everything is everything, and hidden slots stay hidden.
  run(recipe(m, retrieve::Quest{.page = 4, .tokens = 512, .dense_layers = 0}), &chosen);
  for (std::size_t i = 0; i < plain.size(); ++i)
    for (std::size_t j = 0; j < plain[i].size(); ++j) REQUIRE(chosen[i][j] == Approx(plain[i][j]).margin(1e-5));
  const Report evicted = run(recipe(evict::H2O{.heavy = 8, .recent = 8}, m, quant::Kivi<4>{.group_size = 8, .residual_window = 8}));
  REQUIRE(evicted.slots <= 2 * 16);  // of what a step brings, states that were passed on count, too
  REQUIRE(evicted.slots >= 16);
  REQUIRE(evicted.merged_slots > 0);
  REQUIRE(evicted.coded_bytes > 0);
  REQUIRE(run(recipe(evict::RKV{.tokens = 20, .window = 8, .slack = 1}, m)).slots <= 2 * 21);
}
