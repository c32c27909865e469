#include <cmath>
#include <limits>

#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/merge/cam.hpp>
#include <kvcondense/merge/centroid.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/merge/kvmerger.hpp>
#include <kvcondense/merge/lookm.hpp>
#include <kvcondense/merge/tome.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <support/byte_list.hpp>
#include <support/cache_rig.hpp>
#include <support/memory.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Tokens through layer 0; attention of them, log-sum-exp last.
template <class Rig>
std::vector<float> forward(Rig& r, const CacheShape& s, const Tokens& t) {
  std::vector<float> out(at(s.q_heads * t.n * s.values()));
  REQUIRE(r.cache.forward(r.ctx, 0, t.queries(s), t.keys(s), t.values(s), dense_view(out.data(), s.q_heads, t.n, s.values())) == Status::ok);
  return out;
}

/// Attention and log-sum-exp of one query per head over what is stored.
template <class Rig>
std::vector<float> ask(Rig& r, const CacheShape& s, const Tokens& t) {
  std::vector<float> out(at(s.q_heads * s.values() + s.q_heads));
  REQUIRE(r.cache.attend(r.ctx, 0, t.queries(s), dense_view(out.data(), s.q_heads, 1, s.values()),
                         {{}, dense_view(out.data() + s.q_heads * s.values(), s.q_heads, 1)}) == Status::ok);
  return out;
}

/// What a layer's heads hold: tokens, rows, lanes, states.
template <class C>
std::vector<float> held(const C& c) {
  std::vector<float> all;
  for (const auto& head : c.layers()[0].heads) {
    const index_t n = head.slots(), k = head.keys.dim(), v = head.values.dim();
    std::vector<float> rows(at(n * (k + v)));
    head.keys.decode_from(0, {rows.data(), n, k});
    head.values.decode_from(0, {rows.data() + n * k, n, v});
    for (index_t j = 0; j < n; ++j) all.push_back(static_cast<float>(head.ids[j]));
    all.insert(all.end(), rows.begin(), rows.end());
    for (index_t l = 0; l < head.lanes; ++l) all.insert(all.end(), head.lane[l].begin(), head.lane[l].end());
    all.insert(all.end(), head.state.begin(), head.state.end());
  }
  return all;
}

/// Every token alike but the query.
Tokens alike(const CacheShape& s, index_t n, std::mt19937& random) {
  Tokens t(s, n, random);
  const auto copies = [&](std::vector<float>& x, index_t dim) {
    for (index_t h = 0; h < s.kv_heads; ++h)
      for (index_t i = 1; i < n; ++i) std::copy_n(x.data() + h * n * dim, dim, x.data() + (h * n + i) * dim);
  };
  copies(t.k, s.head_dim), copies(t.v, s.values());
  return t;
}

template <class E, class M>
void identity(const char* word, const E& evict, const M& merge) {
  for (const auto& [group, dim] : {std::pair<index_t, index_t>{1, 64}, {2, 80}, {3, 96}, {5, 112}, {7, 128}, {16, 256}}) {
    CAPTURE(word, group, dim);
    const CacheShape s{.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim, .dtype = DType::f32};
    std::mt19937 random(7);
    const Tokens prompt = alike(s, 50, random), query(s, 1, random);
    CacheRig folded(s, recipe(evict, merge), 96, 64);
    CacheRig full(s, recipe(evict::KeepAll{}), 96, 64);
    forward(folded, s, prompt), forward(full, s, prompt);
    REQUIRE(folded.cache.report().merged_slots > 0);
    REQUIRE(folded.cache.slots(0, 0) < 50);
    const auto a = ask(folded, s, query), b = ask(full, s, query);
    for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(a[i] == Approx(b[i]).margin(2e-5));
  }
}

}  // namespace

TEST_CASE("fold: identical tokens that fold with their number counted give the full attention", "[cache][fold]") {
  const auto counted = merge::Mass::log_count;
  const evict::SinkWindow window{.recent = 16, .sinks = 4};
  const evict::KeepAll all;
  identity("d2o", window, merge::D2O{.mass = counted});
  identity("lookm", window, merge::LookM{.kernel = merge::LookM::Kernel::average, .mass = counted});
  identity("kvmerger", all, merge::KVMerger{.heavy = 0, .recent = 0, .window = 4, .mass = counted, .place = merge::Place::as_cached});
  identity("tome", all, merge::ToMe{.tokens = 14, .slack = 0, .sinks = 2, .recent = 4, .mass = counted});
  identity("centroid", all, merge::Centroid{.tokens = 14, .chunk = 6, .slack = 0, .sinks = 2, .recent = 4, .mass = counted});
  identity("d2o exact", window, merge::D2O{.mass = merge::Mass::exact});
}

TEST_CASE("fold: a convex sum without mass weighs less than what it stands for, with it as much", "[cache][fold]") {
  const CacheShape s{.q_heads = 2, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32};
  std::mt19937 random(3);
  const Tokens prompt(s, 40, random);
  const Tokens query = [&] {  // the newest query of the prompt, again
    Tokens q(s, 1, random);
    for (index_t h = 0; h < 2; ++h) std::copy_n(prompt.q.data() + (h * 40 + 39) * 32, 32, q.q.data() + h * 32);
    return q;
  }();
  CacheRig full(s, recipe(evict::KeepAll{}), 96, 64);
  forward(full, s, prompt);
  const auto lse = [&](auto&& r) {
    forward(r, s, prompt);
    REQUIRE(r.cache.report().merged_slots == 2 * 20);
    const auto out = ask(r, s, query);
    return std::vector<float>(out.end() - 2, out.end());
  };
  const auto all = ask(full, s, query);
  const auto with = [&](merge::Mass mass) {
    return lse(CacheRig(s, recipe(evict::SinkWindow{.recent = 16, .sinks = 4},
                                  merge::LookM{.kernel = merge::LookM::Kernel::average, .mass = mass}), 96, 64));
  };
  const auto none = with(merge::Mass::none), counted = with(merge::Mass::log_count), exact = with(merge::Mass::exact);
  for (std::size_t h = 0; h < 2; ++h) {
    const float want = all[all.size() - 2 + h];
    REQUIRE(none[h] < want - 0.1f);
    REQUIRE(std::fabs(counted[h] - want) < std::fabs(none[h] - want));
    REQUIRE(exact[h] == Approx(want).margin(1e-5));
  }
}

TEST_CASE("fold: values scaled by their number are what attention adds up", "[cache][fold]") {
  const CacheShape s{.q_heads = 1, .kv_heads = 1, .head_dim = 16, .dtype = DType::f32};
  std::mt19937 random(5);
  const Tokens prompt = alike(s, 10, random), query(s, 1, random);
  CacheRig r(s, recipe(evict::SinkWindow{.recent = 1, .sinks = 0}, merge::LookM{.mass = merge::Mass::value_scale}), 96, 64);
  forward(r, s, prompt);
  REQUIRE(r.cache.slots(0, 0) == 1);
  const auto out = ask(r, s, query);
  for (std::size_t d = 0; d < 16; ++d) REQUIRE(out[d] == Approx(10.0f * prompt.v[d]).epsilon(1e-5));
}

TEST_CASE("fold: a fork does not see what folds in the other, and pages of both are their own", "[cache][fold]") {
  const CacheShape s{.q_heads = 4, .kv_heads = 2, .head_dim = 32};
  const auto stages = recipe(evict::H2O{.heavy = 12, .recent = 12}, merge::D2O{.mass = merge::Mass::log_count});
  CacheRig r(s, stages, 96, 64);
  std::mt19937 random(11);
  forward(r, s, Tokens(s, 60, random));
  auto copy = r.cache.fork();
  REQUIRE(copy);
  const auto before = held(*copy);
  for (int i = 0; i < 12; ++i) forward(r, s, Tokens(s, 1, random));
  REQUIRE((held(*copy) == before));
  REQUIRE((held(r.cache) != before));
  REQUIRE(r.memory.live_bytes >= r.cache.report().bytes());
}

TEST_CASE("fold: files and forks go on as the cache itself, thresholds and sizes too", "[cache][fold]") {
  const CacheShape s{.q_heads = 4, .kv_heads = 2, .head_dim = 32};
  const auto stages = recipe(evict::H2O{.heavy = 12, .recent = 12}, merge::D2O{.mass = merge::Mass::log_count, .place = merge::Place::latest},
                             quant::Kivi<4>{.group_size = 8, .residual_window = 16});
  CacheRig r(s, stages, 96, 64);
  std::mt19937 random(13);
  forward(r, s, Tokens(s, 60, random));
  for (int i = 0; i < 9; ++i) forward(r, s, Tokens(s, 1, random));
  REQUIRE(r.cache.report().bytes() == r.memory.live_bytes);
  ByteList file;
  REQUIRE(save(r.cache, file) == Status::ok);
  CacheRig loaded(s, stages, 96, 64);
  REQUIRE(load(loaded.cache, file.bytes) == Status::ok);
  auto copy = r.cache.fork();
  REQUIRE(copy);
  const auto state = r.cache.layers()[0].heads[1].state[0];
  REQUIRE(state != 0.0f);
  REQUIRE(loaded.cache.layers()[0].heads[1].state[0] == state);
  for (int i = 0; i < 6; ++i) {
    const std::mt19937 now = random;
    std::mt19937 a = now, b = now;
    const Tokens t(s, 1, random);
    std::vector<float> other(at(4 * 32));
    const auto want = forward(r, s, t);
    REQUIRE(forward(loaded, s, Tokens(s, 1, a)) == want);
    const Tokens same(s, 1, b);
    REQUIRE(copy->forward(r.ctx, 0, same.queries(s), same.keys(s), same.values(s), dense_view(other.data(), 4, 1, 32)) == Status::ok);
    REQUIRE(other == want);
  }
  REQUIRE(loaded.cache.layers()[0].heads[1].state[0] == r.cache.layers()[0].heads[1].state[0]);
  // Other merge stages read other lanes.
  CacheRig other(s, recipe(evict::H2O{.heavy = 12, .recent = 12}, quant::Kivi<4>{.group_size = 8, .residual_window = 16}), 96, 64);
  REQUIRE(load(other.cache, file.bytes) == Status::incompatible);
  for (std::size_t cut = 0; cut < file.bytes.size(); cut += 61)
    REQUIRE(load(loaded.cache, std::span(file.bytes).first(cut)) == Status::corrupt_data);
}

TEST_CASE("fold: drafts that are taken back leave no trace", "[cache][fold]") {
  const CacheShape s{.q_heads = 4, .kv_heads = 2, .head_dim = 32};
  const auto stages = recipe(evict::H2O{.heavy = 12, .recent = 12}, merge::D2O{.mass = merge::Mass::log_count, .place = merge::Place::pivot});
  CacheRig r(s, stages, 96, 64), twin(s, stages, 96, 64);
  std::mt19937 a(17), b(17), other(2);
  for (int i = 0; i < 8; ++i) {
    const auto want = forward(twin, s, Tokens(s, i == 0 ? 50 : 1, a));
    const Tokens drafts(s, 3, other);
    REQUIRE(r.cache.append(r.ctx, 0, drafts.keys(s), drafts.values(s)) == Status::ok);
    REQUIRE(r.cache.truncate(r.cache.length() - 3) == Status::ok);
    REQUIRE(forward(r, s, Tokens(s, i == 0 ? 50 : 1, b)) == want);
  }
}

TEST_CASE("fold: where codes leave a few slots exact nothing folds into them", "[cache][fold]") {
  const CacheShape s{.q_heads = 2, .kv_heads = 2, .head_dim = 32};
  const quant::GroupInt<8> codes{.residual_window = 0};
  const evict::H2O h2o{.heavy = 20, .recent = 20};
  CacheRig r(s, recipe(h2o, merge::D2O{.keep = 1.0f, .add = 0.0f}, codes), 96, 64);
  CacheRig plain(s, recipe(h2o, codes), 96, 64);
  std::mt19937 a(19), b(19);
  for (int i = 0; i < 20; ++i) REQUIRE(forward(r, s, Tokens(s, i == 0 ? 40 : 1, a)) == forward(plain, s, Tokens(s, i == 0 ? 40 : 1, b)));
  REQUIRE(r.cache.report().evicted_slots > 0);
  REQUIRE(r.cache.report().merged_slots == 0);
  // At the end of a prompt all of it is exact.
  CacheRig prompt(s, recipe(h2o, merge::D2O{.keep = 1.0f, .add = 0.0f}, codes), 96, 64);
  forward(prompt, s, Tokens(s, 60, a));
  REQUIRE(prompt.cache.report().merged_slots > 0);
}

TEST_CASE("fold: a coded slot is neither changed nor a target, and may fold", "[cache][fold]") {
  const CacheShape s{.q_heads = 2, .kv_heads = 2, .head_dim = 32};
  CacheRig r(s, recipe(evict::H2O{.heavy = 20, .recent = 20}, merge::D2O{.keep = 1.0f, .add = 0.0f},
                       quant::Kivi<4>{.group_size = 8, .residual_window = 16}), 96, 64);
  std::mt19937 random(19);
  forward(r, s, Tokens(s, 40, random));
  const auto& head = r.cache.layers()[0].heads[0];
  const index_t before = r.cache.report().merged_slots;
  for (int i = 0; i < 20; ++i) {
    const index_t coded = head.keys.coded().live();
    REQUIRE(coded > 0);
    std::vector<float> old(at(coded * 32)), now(at(40 * 32));
    std::vector<index_t> tokens;
    for (index_t j = 0; j < coded; ++j) tokens.push_back(r.cache.token(0, 0, j));
    head.keys.decode_from(0, {old.data(), coded, 32});
    forward(r, s, Tokens(s, 1, random));
    for (index_t j = 0, k = 0; j < coded; ++j) {  // those that are still coded are what they were
      while (k < head.keys.coded().live() && r.cache.token(0, 0, k) < tokens[at(j)]) ++k;
      if (k == head.keys.coded().live() || r.cache.token(0, 0, k) != tokens[at(j)] || r.cache.report().coded_again > 0) continue;
      head.keys.decode_from(k, {now.data(), 1, 32});
      REQUIRE(std::equal(now.begin(), now.begin() + 32, old.begin() + j * 32));
    }
  }
  REQUIRE(r.cache.report().merged_slots > before);
}

TEST_CASE("fold: sums beyond the stored type end at its largest number, counted", "[cache][fold]") {
  const CacheShape s{.q_heads = 1, .kv_heads = 1, .head_dim = 8};
  std::mt19937 random(23);
  Tokens prompt = alike(s, 12, random);
  for (float& x : prompt.v) x = 60000.0f;
  CacheRig r(s, recipe(evict::SinkWindow{.recent = 2, .sinks = 0}, merge::CaM{.targets = 1}), 32, 16);
  forward(r, s, prompt);
  REQUIRE(r.cache.report().merged_slots > 0);
  REQUIRE(r.cache.report().repaired_numbers == 8);
  float k[16], v[16];
  REQUIRE(r.cache.read(0, 0, 0, dense_view(k, 2, 8), dense_view(v, 2, 8)) == Status::ok);
  REQUIRE(*std::max_element(v, v + 16) == 65504.0f);
}

TEST_CASE("fold: without memory for pages of its own a step changes nothing", "[cache][fold]") {
  const CacheShape s{.q_heads = 2, .kv_heads = 2, .head_dim = 32, .page_slots = 8};
  const auto stages = recipe(evict::H2O{.heavy = 20, .recent = 12}, merge::D2O{.mass = merge::Mass::log_count});
  std::mt19937 random(29);
  CountingMemory memory;
  auto made = make_cache<Cpu>(s, stages, memory);
  REQUIRE(made);
  Workspace work;
  REQUIRE(work.reserve(made->workspace_bytes(96, 64)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::vector<float> out(at(2 * 50 * 32));
  const auto run = [&](const Tokens& t) {
    return made->forward(ctx, 0, t.queries(s), t.keys(s), t.values(s), dense_view(out.data(), 2, t.n, 32));
  };
  REQUIRE(run(Tokens(s, 50, random)) == Status::ok);
  index_t refused = 0;
  for (int i = 0; i < 12; ++i) {
    auto copy = made->fork();  // so that whatever folds needs pages of its own
    REQUIRE(copy);
    const Tokens t(s, 1, random);
    const auto before = held(*made);
    for (int room = 0;; ++room) {
      memory.refuse_from = memory.requests + room;
      const Status status = run(t);
      memory.refuse_from = -1;
      if (status == Status::ok) break;
      REQUIRE(status == Status::out_of_memory);
      ++refused;
      REQUIRE((held(*made) == before));
    }
  }
  REQUIRE(refused > 12);
  REQUIRE(made->report().merged_slots > 20);
}

TEST_CASE("fold: what leaves without folding lives on in a mean, and only that", "[cache][fold]") {
  const CacheShape s{.q_heads = 2, .kv_heads = 2, .head_dim = 32};
  CacheRig r(s, recipe(evict::Compensate<evict::H2O>{{.heavy = 10, .recent = 10}}, merge::D2O{}), 96, 64);
  std::mt19937 random(31);
  forward(r, s, Tokens(s, 60, random));
  const Report report = r.cache.report();
  index_t mean = 0;
  for (index_t h = 0; h < 2; ++h) mean += r.cache.layers()[0].heads[h].summary.count();
  REQUIRE(report.evicted_slots == 2 * 40);
  REQUIRE(report.merged_slots > 0);
  REQUIRE(mean > 0);
  REQUIRE(mean == report.evicted_slots - report.merged_slots);
}

TEST_CASE("fold: a slot takes its rows and the numbers that its stages keep, and no more", "[cache][fold]") {
  const CacheShape s{.q_heads = 4, .kv_heads = 2, .head_dim = 32, .value_dim = 16, .page_slots = 8};
  // Numbers of 32 bits per slot: a score of the policy, one of the merge, how many tokens it stands for.
  const auto check = [&](const auto& stages, index_t numbers) {
    CacheRig r(s, stages, 96, 64);
    std::mt19937 random(3);
    for (int i = 0; i < 3; ++i) forward(r, s, Tokens(s, 30, random));
    REQUIRE(r.cache.plan().lanes == numbers);
    const Report report = r.cache.report();
    REQUIRE(report.bytes() == r.memory.live_bytes);
    std::size_t rows = 0, lanes = 0, pages = 0;
    for (const auto& h : r.cache.layers()[0].heads) {
      for (const index_t dim : {s.head_dim, s.value_dim}) rows += at(h.slots()) * at(dim) * 2;
      for (index_t l = 0; l < h.lanes; ++l) lanes += at(h.lane[l].size()) * sizeof(float);
      const auto count = [&](const auto& part) { pages += at(part.pages().size()); };
      count(h.keys.sinks()), count(h.keys.window()), count(h.values.sinks()), count(h.values.window());
    }
    REQUIRE(lanes == at(r.cache.total_slots(0) * numbers) * 4);
    // Beside that pages have headers, free slots at the end of a part, less than a page of tombstones, and a spare.
    REQUIRE(report.exact_bytes >= rows + pages * sizeof(cache::Page));
    REQUIRE(report.exact_bytes <= rows + pages * sizeof(cache::Page) + 2 * 5 * 8 * (32 + 16) * 2 + 8 * sizeof(cache::Page));
  };
  const evict::SinkWindow ends{.recent = 20, .sinks = 2};
  check(recipe(ends, merge::LookM{.mass = merge::Mass::none}), 0);
  check(recipe(ends, merge::LookM{.mass = merge::Mass::log_count}), 1);
  check(recipe(evict::H2O{.heavy = 12, .recent = 12}, merge::D2O{}), 1);
  check(recipe(evict::H2O{.heavy = 12, .recent = 12}, merge::D2O{.mass = merge::Mass::log_count}), 2);
  check(recipe(ends, merge::CaM{}), 1);
}

TEST_CASE("fold: of clustered keys a window knows least, sums without mass more, sums that count most", "[cache][fold]") {
  const CacheShape s{.q_heads = 1, .kv_heads = 1, .head_dim = 64, .dtype = DType::f32};
  constexpr index_t centres = 24, n = 64;
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> key(at(centres * 64)), value(at(centres * 64));
  for (float& x : key) x = normal(random);
  for (float& x : value) x = normal(random);
  CacheRig full(s, recipe(evict::KeepAll{}), 1024, n);
  CacheRig window(s, recipe(evict::SinkWindow{.recent = 44, .sinks = 4}), 256, n);
  CacheRig none(s, recipe(evict::SinkWindow{.recent = 44, .sinks = 4}, merge::LookM{.mass = merge::Mass::none}), 256, n);
  CacheRig count(s, recipe(evict::SinkWindow{.recent = 44, .sinks = 4}, merge::LookM{.mass = merge::Mass::log_count}), 256, n);
  for (int piece = 0; piece < 16; ++piece) {
    Tokens t(s, n, random);
    for (index_t i = 0; i < n; ++i) {  // most of the early text is about other things than the late one
      const index_t c = static_cast<index_t>(random() % 12) + (piece < 12 ? 0 : 12);
      for (index_t d = 0; d < 64; ++d) {
        t.k[at(i * 64 + d)] = key[at(c * 64 + d)] + 0.2f * normal(random);
        t.v[at(i * 64 + d)] = value[at(c * 64 + d)] + 0.2f * normal(random);
      }
    }
    forward(full, s, t), forward(window, s, t), forward(none, s, t), forward(count, s, t);
  }
  double error[3] = {}, size = 0;
  for (index_t c = 0; c < centres; ++c) {
    Tokens q(s, 1, random);
    for (index_t d = 0; d < 64; ++d) q.q[at(d)] = 0.3f * key[at(c * 64 + d)];
    const auto want = ask(full, s, q);
    const std::vector<float> got[3] = {ask(window, s, q), ask(none, s, q), ask(count, s, q)};
    for (std::size_t d = 0; d < 64; ++d) {
      size += std::pow(static_cast<double>(want[d]), 2);
      for (std::size_t i = 0; i < 3; ++i) error[i] += std::pow(static_cast<double>(got[i][d] - want[d]), 2);
    }
  }
  CAPTURE(error[0] / size, error[1] / size, error[2] / size);
  REQUIRE(error[0] > error[1]);
  REQUIRE(error[1] > error[2]);
}

TEST_CASE("fold: stages that cannot work together are refused", "[cache][fold]") {
  const CacheShape s{.q_heads = 2, .kv_heads = 2, .head_dim = 32};
  const evict::H2O h2o{.heavy = 10, .recent = 10};
  REQUIRE(make_cache<Cpu>(s, recipe(merge::D2O{})).status() == Status::incompatible);
  REQUIRE(make_cache<Cpu>(s, recipe(merge::ToMe{})).status() == Status::ok);
  REQUIRE(make_cache<Cpu>(s, recipe(h2o, merge::D2O{.mass = merge::Mass::exact}, position::Reindex{})).status() == Status::incompatible);
  REQUIRE(make_cache<Cpu>(s, recipe(h2o, merge::D2O{.place = merge::Place::latest}, position::Reindex{})).status() == Status::incompatible);
  REQUIRE(make_cache<Cpu>(s, recipe(h2o, merge::D2O{.place = merge::Place::pivot}, position::Reindex{})).status() == Status::ok);
  REQUIRE(make_cache<Cpu>(s, recipe(h2o, merge::D2O{.keep = 2.0f})).status() == Status::invalid_argument);
  REQUIRE(make_cache<Cpu>(s, recipe(h2o, merge::D2O{.place = merge::Place::pivot, .rope = {.rotary_dim = 64}})).status() ==
          Status::invalid_argument);
  auto exact = make_cache<Cpu>(s, recipe(h2o, merge::D2O{.mass = merge::Mass::exact}));
  REQUIRE(exact);
  REQUIRE(exact->capabilities().needs.has(Input::queries));
}

TEST_CASE("fold: a step that weighs by its newest query is refused without one", "[cache][fold]") {
  const CacheShape s{.q_heads = 2, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32};
  std::mt19937 random(5);
  const Tokens t(s, 40, random);
  CacheRig r(s, recipe(evict::SinkWindow{.recent = 8, .sinks = 2}, merge::D2O{.mass = merge::Mass::exact}), 96, 64);
  REQUIRE(r.cache.append(r.ctx, 0, t.keys(s), t.values(s)) == Status::ok);
  auto none = t.queries(s);
  none.extent[1] = 0;
  REQUIRE(r.cache.missing(0, StepInputs{.queries = none}) != nullptr);
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{.queries = none}) == Status::missing_input);
  REQUIRE(r.cache.pending() == 40);
  REQUIRE(r.cache.slots(0, 0) == 40);
  auto newest = t.queries(s);
  newest.data += 39 * newest.stride[1], newest.extent[1] = 1;
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{.queries = newest}) == Status::ok);
  REQUIRE(r.cache.report().merged_slots > 0);
}
