#include <kvcondense/merge/minicache.hpp>

#include <atomic>
#include <cmath>
#include <thread>

#include <catch2/catch.hpp>

#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/quant/mikv.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/check_snapshot.hpp>
#include <support/oracle.hpp>
#include <support/stored_rows.hpp>

using namespace kvcondense;
using merge::MiniCache;
using prim::Apart;
using Direction = prim::SharedDirection<Cpu>;

namespace {

using Row = std::vector<double>;

double norm(const Row& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

/// The angle by its cosine, which is good enough away from 0 and pi.
double angle(const Row& a, const Row& b) {
  double dot = 0;
  for (std::size_t d = 0; d < a.size(); ++d) dot += a[d] * b[d];
  return std::acos(std::clamp(dot / norm(a) / norm(b), -1.0, 1.0));
}

/// The paper's formulas in double: what two layers make of their rows. `kept` are the ceil(part * n) furthest apart.
void merge_rows(std::vector<Row>& a, std::vector<Row>& b, double weight, double part, std::vector<bool>& kept) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < a.size(); ++i) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return angle(a[i], b[i]) > angle(a[j], b[j]); });
  kept.assign(a.size(), false);
  for (std::size_t k = 0; k < static_cast<std::size_t>(std::ceil(part * static_cast<double>(a.size()) - 1e-9)); ++k) kept[order[k]] = true;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (kept[i]) continue;
    const double omega = angle(a[i], b[i]), la = norm(a[i]), lb = norm(b[i]);
    Row e;
    for (std::size_t d = 0; d < a[i].size(); ++d)
      e.push_back((std::sin((1 - weight) * omega) * a[i][d] / la + std::sin(weight * omega) * b[i][d] / lb) / std::sin(omega));
    for (std::size_t d = 0; d < e.size(); ++d) a[i][d] = la * e[d], b[i][d] = lb * e[d];
  }
}

/// Rows of neighbouring layers that point nearly the same way, some less than others.
struct Stream {
  CacheShape shape;
  std::mt19937 random;
  std::vector<test::Tokens> layers(index_t n) {
    std::vector<test::Tokens> all(static_cast<std::size_t>(shape.layers), test::Tokens(shape, n, random));
    std::normal_distribution<float> normal;
    for (std::size_t l = 1; l < all.size(); ++l) {
      for (auto* x : {&all[l].k, &all[l].v})
        for (float& e : *x) e = 0.7f * e + 0.4f * normal(random);
      for (float& q : all[l].q) q = normal(random);
    }
    return all;
  }
};

template <class R>
void feed(test::CacheRig<R>& rig, const std::vector<test::Tokens>& layers, Phase phase = Phase::automatic) {
  const CacheShape& s = rig.cache.shape();
  for (index_t l = 0; l < s.layers; ++l) {
    const test::Tokens& t = layers[static_cast<std::size_t>(l)];
    REQUIRE(rig.cache.append(rig.ctx, l, t.keys(s), t.values(s)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, l, phase) == Status::ok);
  }
}

Row row_of(const TensorView<const float, 3>& x, index_t h, index_t i) {
  Row r;
  for (index_t d = 0; d < x.extent[2]; ++d) r.push_back(x(h, i, d));
  return r;
}

struct Threads final : Executor {
  index_t workers() const noexcept override { return 3; }
  void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
    std::atomic<index_t> next{0};
    std::vector<std::jthread> pool;
    for (index_t w = 0; w < 3; ++w)
      pool.emplace_back([&, w] {
        for (index_t t; (t = next++) < tasks;) body(state, t, w);
      });
  }
};

constexpr CacheShape two_layers{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

}  // namespace

TEST_CASE("minicache: the oracle's angles, directions, lengths and rows that stay", "[merge][minicache]") {
  const auto o = test::load_oracle("merging_lowrank.json", "minicache_slerp");
  const auto a = test::floats(o["inputs"]["X_prev"]), b = test::floats(o["inputs"]["X_cur"]);
  const auto& want = o["expected"];
  const float weight = o["params"]["t"].get<float>();
  constexpr index_t n = 6, dim = 3;
  float distance[n];
  for (index_t i = 0; i < n; ++i) {
    CAPTURE(i);
    const auto at = static_cast<std::size_t>(i);
    double length[2];
    distance[i] = Direction::distance(a.data() + i * dim, b.data() + i * dim, dim, length);
    REQUIRE(length[0] == Approx(want["norm_prev"][at].get<double>()).margin(1e-9));
    REQUIRE(length[1] == Approx(want["norm_cur"][at].get<double>()).margin(1e-9));
    REQUIRE(distance[i] == Approx(want["angular_distance"][at].get<double>()).epsilon(1e-5).margin(1e-12));
    float e[dim];
    Direction::between(weight, a.data() + i * dim, b.data() + i * dim, dim, e);
    const bool kept = i == 1 || i == 3;
    for (index_t d = 0; d < dim; ++d) {
      const auto c = static_cast<std::size_t>(d);
      if (i != 3) REQUIRE(e[d] == Approx(want["direction"][at][c].get<double>()).margin(1e-7));
      if (kept) continue;
      REQUIRE(length[0] * static_cast<double>(e[d]) == Approx(want["restored_prev"][at][c].get<double>()).margin(1e-6));
      REQUIRE(length[1] * static_cast<double>(e[d]) == Approx(want["restored_cur"][at][c].get<double>()).margin(1e-6));
    }
  }
  const auto list = [&](const prim::DirectionRule& rule) {
    std::uint8_t kept[n];
    std::vector<int> slots;
    const index_t count = Direction::apart(rule, distance, n, kept);
    for (int i = 0; i < n; ++i)
      if (kept[i] != 0) slots.push_back(i);
    REQUIRE(count == static_cast<index_t>(slots.size()));
    return slots;
  };
  REQUIRE(list({weight, Apart::range, o["params"]["gamma"].get<float>()}) == want["retained_far_threshold"].get<std::vector<int>>());
  REQUIRE(list({weight, Apart::fraction, o["params"]["retain_fraction"].get<float>()}) == want["retained_used"].get<std::vector<int>>());
  REQUIRE(list({weight, Apart::fraction, 0.0f}) == want["forced_antiparallel"].get<std::vector<int>>());
}

TEST_CASE("minicache: weight 0 restores one layer, weight 1 the other, and equal directions restore both", "[merge][minicache]") {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (const index_t dim : {3, 64, 80, 128, 256}) {
    CAPTURE(dim);
    std::vector<float> a(static_cast<std::size_t>(dim)), b(a), e(a);
    for (std::size_t d = 0; d < a.size(); ++d) a[d] = normal(random), b[d] = 3.0f * normal(random);
    double length[2];
    const auto restores = [&](float weight, int which, const std::vector<float>& row) {
      Direction::distance(a.data(), b.data(), dim, length);
      Direction::between(weight, a.data(), b.data(), dim, e.data());
      for (std::size_t d = 0; d < e.size(); ++d)
        REQUIRE(length[which] * static_cast<double>(e[d]) == Approx(static_cast<double>(row[d])).margin(1e-6 * length[which]));
    };
    restores(0.0f, 0, a);
    restores(1.0f, 1, b);
    for (std::size_t d = 0; d < b.size(); ++d) b[d] = 2.0f * a[d];
    restores(0.3f, 0, a);
    restores(0.3f, 1, b);
  }
}

TEST_CASE("minicache: the oracle's bytes are those of the pages", "[merge][minicache]") {
  const auto o = test::load_oracle("merging_lowrank.json", "minicache_bytes");
  const auto& want = o["expected"];
  const index_t tokens = o["inputs"]["T"].get<index_t>(), heads = o["inputs"]["H_kv"].get<index_t>();
  const CacheShape s{.layers = 4, .q_heads = heads, .kv_heads = heads, .head_dim = o["inputs"]["d"].get<index_t>(), .page_slots = 250};
  test::CacheRig rig(s, recipe(MiniCache{.part = o["params"]["retain_fraction"].get<float>()}), tokens, tokens);
  Stream stream{s, std::mt19937(3)};
  feed(rig, stream.layers(tokens));
  const Report r = rig.cache.report();
  REQUIRE(r.bytes() == rig.memory.live_bytes);
  // A page of directions and one of each layer's own, per head, of keys and of values; each has a header.
  const std::size_t pages = static_cast<std::size_t>(2 * heads * tokens / s.page_slots);
  const std::size_t pair = r.coded_bytes - 3 * pages * sizeof(cache::Page);
  REQUIRE(pair == want["compressed_pair"].get<std::size_t>());
  std::size_t exact = 0;  // of the two layers before
  for (index_t l = 0; l < 2; ++l)
    for (const auto& h : rig.cache.layers()[l].heads)
      for (const auto& p : h.keys.window().pages()) exact += 2 * p.page->payload_bytes;
  REQUIRE(exact == want["original_pair"].get<std::size_t>());
  REQUIRE(static_cast<double>(exact) / static_cast<double>(pair) == Approx(want["pair_ratio"].get<double>()));
  REQUIRE(2.0 * static_cast<double>(exact) / static_cast<double>(exact + pair) == Approx(want["model_ratio_upper_half_merged"].get<double>()));
  const index_t kept = static_cast<index_t>(std::lround(0.05 * static_cast<double>(tokens)));
  REQUIRE(r.across_rows == 2 * 2 * heads * (tokens - kept));
  REQUIRE(r.across_part() == Approx(0.5 * 0.95));
}

TEST_CASE("minicache: attention is that over the paper's rows, whatever the shape", "[merge][minicache]") {
  struct Form {
    index_t q_heads, kv_heads, head_dim, value_dim;
  };
  const Form f = GENERATE(Form{4, 4, 64, 64}, Form{6, 3, 80, 48}, Form{8, 2, 96, 96}, Form{16, 2, 112, 112}, Form{16, 1, 128, 64}, Form{2, 1, 256, 256});
  const DType dtype = GENERATE(DType::f32, DType::f16, DType::bf16);
  const CacheShape s{.layers = 3, .q_heads = f.q_heads, .kv_heads = f.kv_heads, .head_dim = f.head_dim, .value_dim = f.value_dim, .dtype = dtype, .page_slots = 20};
  test::CacheRig rig(s, recipe(MiniCache{.weight = 0.7f, .start = 0.4f, .part = 0.1f}), 128, 64);
  Stream stream{s, std::mt19937(7)};
  const index_t n = 47, whole = 40;
  const auto prompt = stream.layers(n), next = stream.layers(2);
  feed(rig, prompt);
  REQUIRE(rig.cache.layer_group(0).count == 1);
  REQUIRE(rig.cache.layer_group(2).first == 1);
  REQUIRE(rig.cache.layer_group(1).count == 2);
  REQUIRE(rig.cache.report().across_rows == 2 * 2 * f.kv_heads * 36);
  REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
  const double bound = dtype == DType::f32 ? 2e-5 : dtype == DType::f16 ? 5e-3 : 3e-2;
  std::vector<std::vector<std::vector<test::NaiveSlot>>> slots(3, std::vector<std::vector<test::NaiveSlot>>(static_cast<std::size_t>(f.kv_heads)));
  for (index_t h = 0; h < f.kv_heads; ++h) {
    std::vector<Row> rows[3][2];
    for (std::size_t l = 0; l < 3; ++l)
      for (index_t i = 0; i < n; ++i) {
        rows[l][0].push_back(row_of(prompt[l].keys(s), h, i)), rows[l][1].push_back(row_of(prompt[l].values(s), h, i));
      }
    for (int kind = 0; kind < 2; ++kind) {
      std::vector<Row> a(rows[1][kind].begin(), rows[1][kind].begin() + whole), b(rows[2][kind].begin(), rows[2][kind].begin() + whole);
      std::vector<bool> kept;
      merge_rows(a, b, 0.7, 0.1, kept);
      std::copy(a.begin(), a.end(), rows[1][kind].begin()), std::copy(b.begin(), b.end(), rows[2][kind].begin());
    }
    for (std::size_t l = 0; l < 3; ++l)
      for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i)
        slots[l][static_cast<std::size_t>(h)].push_back({static_cast<index_t>(i), rows[l][0][i], rows[l][1][i]});
  }
  for (index_t l = 0; l < 3; ++l) {
    const test::Tokens& t = next[static_cast<std::size_t>(l)];
    REQUIRE(rig.cache.append(rig.ctx, l, t.keys(s), t.values(s)) == Status::ok);
    std::vector<float> out(static_cast<std::size_t>(s.q_heads * 2 * s.values()));
    REQUIRE(rig.cache.attend(rig.ctx, l, t.queries(s), dense_view(out.data(), s.q_heads, 2, s.values())) == Status::ok);
    for (index_t q = 0; q < s.q_heads; ++q) {
      auto all = slots[static_cast<std::size_t>(l)][static_cast<std::size_t>(q / s.group())];
      for (index_t i = 0; i < 2; ++i) all.push_back({n + i, row_of(t.keys(s), q / s.group(), i), row_of(t.values(s), q / s.group(), i)});
      for (index_t i = 0; i < 2; ++i) {
        const auto want = test::naive_attention(row_of(t.queries(s), q, i), all, n + i + 1, 1.0 / std::sqrt(static_cast<double>(s.head_dim)),
                                                static_cast<std::size_t>(s.values()));
        double worst = 0;
        for (std::size_t d = 0; d < want.size(); ++d)
          worst = std::max(worst, std::abs(want[d] - static_cast<double>(out[static_cast<std::size_t>((q * 2 + i) * s.values()) + d])));
        REQUIRE(worst < bound);
      }
    }
  }
}

TEST_CASE("minicache: rows that stay are theirs bit for bit, and the others keep their lengths", "[merge][minicache]") {
  const DType dtype = GENERATE(DType::f16, DType::bf16, DType::f32);
  CacheShape s = two_layers;
  s.dtype = dtype;
  test::CacheRig plain(s, recipe(), 64, 64);
  test::CacheRig rig(s, recipe(MiniCache{.start = 0.0f, .part = 0.25f}), 64, 64);
  Stream stream{s, std::mt19937(5)};
  const auto prompt = stream.layers(32);
  feed(plain, prompt), feed(rig, prompt);
  const double least = dtype == DType::f32 ? 1e-6 : 2e-3;
  for (index_t l = 0; l < 2; ++l)
    for (index_t h = 0; h < s.kv_heads; ++h)
      for (const bool values : {false, true}) {
        const auto was = test::stored(plain.cache, l, h, values), is = test::stored(rig.cache, l, h, values);
        index_t same = 0;
        for (std::size_t i = 0; i < 32; ++i) {
          const auto *x = was.data() + i * 32, *y = is.data() + i * 32;
          same += std::equal(x, x + 32, y);
          REQUIRE(norm(Row(y, y + 32)) == Approx(norm(Row(x, x + 32))).epsilon(least));
        }
        REQUIRE(same == 8);
      }
}

TEST_CASE("minicache: rows of zeros, rows alike, rows opposed and rows too long for 16 bits", "[merge][minicache]") {
  const CacheShape s{.layers = 2, .q_heads = 1, .kv_heads = 1, .head_dim = 64, .page_slots = 16};
  test::CacheRig rig(s, recipe(MiniCache{.start = 0.0f, .part = 0.0f}), 64, 64);
  Stream stream{s, std::mt19937(2)};
  auto prompt = stream.layers(16);
  const auto set = [&](std::size_t l, index_t i, float first, float second) {
    for (auto* x : {&prompt[l].k, &prompt[l].v}) {
      std::fill_n(x->begin() + i * 64, 64, 0.0f);
      (*x)[static_cast<std::size_t>(i * 64)] = first, (*x)[static_cast<std::size_t>(i * 64 + 1)] = second;
    }
  };
  set(0, 0, 0, 0), set(1, 0, 3, -4);         // the other's direction
  set(0, 1, -2, 0), set(1, 1, 0, 0);
  set(0, 2, 0, 0), set(1, 2, 0, 0);
  set(0, 3, 6, 8), set(1, 3, 3, 4);          // alike
  set(0, 4, 1, 1), set(1, 4, -2, -2);        // opposed: both stay
  set(0, 5, 65000, 65000), set(1, 5, 1, 2);  // longer than a half
  set(0, 6, 0, 6e-6f), set(1, 6, 0, 1);      // shorter than one keeps its digits
  feed(rig, prompt);
  REQUIRE(rig.cache.report().across_rows == 2 * 2 * (16 - 3));
  const float want[2][7][2] = {{{0, 0}, {-2, 0}, {0, 0}, {6, 8}, {1, 1}, {65000, 65000}, {0, 6e-6f}}, {{3, -4}, {0, 0}, {0, 0}, {3, 4}, {-2, -2}, {1, 2}, {0, 1}}};
  for (index_t l = 0; l < 2; ++l)
    for (const bool values : {false, true}) {
      const auto got = test::stored(rig.cache, l, 0, values);
      for (std::size_t i = 0; i < 7; ++i)
        for (std::size_t d = 0; d < 64; ++d) {
          CAPTURE(l, i, d);
          REQUIRE(got[i * 64 + d] == Approx(d < 2 ? want[l][i][d] : 0.0f).epsilon(1e-3).margin(1e-7));
        }
    }
  // Where most rows stay, a page would become larger: it is stored as it was.
  test::CacheRig all(s, recipe(MiniCache{.start = 0.0f, .part = 0.6f}), 64, 64);
  feed(all, prompt);
  REQUIRE(all.cache.report().across_rows == 0);
  REQUIRE(test::stored(all.cache, 1, 0, true)[5 * 64 + 1] == 2.0f);
}

TEST_CASE("minicache: a prompt merges at its end, generated tokens a page at a time behind the newest", "[merge][minicache]") {
  const index_t recent = GENERATE(0, 7);
  const auto across = [&](index_t tokens) { return 2 * 2 * two_layers.kv_heads * (std::max<index_t>(0, tokens - recent) / 16 * 16); };
  test::CacheRig rig(two_layers, recipe(MiniCache{.start = 0.0f, .part = 0.0f, .recent = recent}), 128, 64);
  Stream stream{two_layers, std::mt19937(9)};
  feed(rig, stream.layers(40), Phase::prefill_chunk);
  REQUIRE(rig.cache.report().across_rows == 0);
  feed(rig, stream.layers(5), Phase::prefill_end);
  REQUIRE(rig.cache.report().across_rows == across(45));
  for (index_t n = 46; n < 100; ++n) {
    feed(rig, stream.layers(1));
    CAPTURE(n);
    REQUIRE(rig.cache.report().across_rows == across(n));
    REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
  }
  // The deeper layer first, and a layer that runs ahead: what both have is shared as soon as both have it.
  test::CacheRig other(two_layers, recipe(MiniCache{.start = 0.0f, .part = 0.0f, .recent = recent}), 128, 64);
  const auto t = stream.layers(40);
  for (const index_t l : {1, 0}) {
    REQUIRE(other.cache.report().across_rows == 0);
    REQUIRE(other.cache.append(other.ctx, l, t[static_cast<std::size_t>(l)].keys(two_layers), t[static_cast<std::size_t>(l)].values(two_layers)) == Status::ok);
    REQUIRE(other.cache.step(other.ctx, l) == Status::ok);
  }
  REQUIRE(other.cache.report().across_rows == across(40));
  const auto draft = stream.layers(20);
  REQUIRE(other.cache.append(other.ctx, 1, draft[1].keys(two_layers), draft[1].values(two_layers)) == Status::ok);
  REQUIRE(other.cache.append(other.ctx, 0, draft[0].keys(two_layers), draft[0].values(two_layers)) == Status::ok);
  REQUIRE(other.cache.step(other.ctx, 0) == Status::ok);
  REQUIRE(other.cache.report().across_rows == across(40));  // the deeper layer's are pending
  REQUIRE(other.cache.step(other.ctx, 1) == Status::ok);
  REQUIRE(other.cache.report().across_rows == across(60));
}

TEST_CASE("minicache: every field changes what is stored", "[merge][minicache]") {
  CacheShape s = two_layers;
  s.layers = 4;
  Stream stream{s, std::mt19937(1)};
  const auto prompt = stream.layers(40);
  const auto rows = [&](const MiniCache& m) {
    test::CacheRig rig(s, recipe(m), 64, 64);
    feed(rig, prompt);
    std::vector<float> all;
    for (index_t l = 0; l < 4; ++l) {
      const auto k = test::stored(rig.cache, l, 1, false);
      all.insert(all.end(), k.begin(), k.end());
    }
    return all;
  };
  const auto usual = rows({});
  REQUIRE(rows({}) == usual);
  REQUIRE(rows({.weight = 0.5f}) != usual);
  REQUIRE(rows({.start = 0.0f}) != usual);
  REQUIRE(rows({.apart = Apart::range, .part = 0.3f}) != rows({.part = 0.3f}));
  REQUIRE(rows({.part = 0.3f}) != usual);
  REQUIRE(rows({.recent = 20}) != usual);
  REQUIRE(rows({.apart = Apart::range, .part = 0.5f}) != rows({.apart = Apart::range}));
  // All of one layer: its rows are exact up to their type, the other's are those at its lengths.
  test::CacheRig plain(s, recipe(), 64, 64);
  test::CacheRig own(s, recipe(MiniCache{.weight = 1.0f, .part = 0.0f}), 64, 64);
  feed(plain, prompt), feed(own, prompt);
  const auto was = test::stored(plain.cache, 3, 0, true), is = test::stored(own.cache, 3, 0, true);
  for (std::size_t i = 0; i < was.size(); ++i) REQUIRE(is[i] == Approx(was[i]).epsilon(2e-3).margin(1e-4));
}

TEST_CASE("minicache: heads that hold other tokens keep theirs, and layers that part take their rows back", "[merge][minicache]") {
  Stream stream{two_layers, std::mt19937(6)};
  const auto prompt = stream.layers(64);
  const auto policy = recipe(MiniCache{.start = 0.0f}, evict::Knorm{.tokens = 48, .recent = 4});
  test::CacheRig apart(two_layers, policy, 128, 64);
  test::CacheRig plain(two_layers, recipe(evict::Knorm{.tokens = 48, .recent = 4}), 128, 64);
  feed(apart, prompt), feed(plain, prompt);
  REQUIRE(apart.cache.report().across_rows == 0);
  for (index_t l = 0; l < 2; ++l) REQUIRE(test::stored(apart.cache, l, 0, false) == test::stored(plain.cache, l, 0, false));

  // A page merges before the budget is full; what leaves afterwards leaves each layer for itself.
  test::CacheRig rig(two_layers, policy, 128, 64);
  feed(rig, stream.layers(48));
  const Report before = rig.cache.report();
  REQUIRE(before.across_rows > 0);
  for (int i = 0; i < 60; ++i) {
    feed(rig, stream.layers(1));
    const Report r = rig.cache.report();
    REQUIRE(r.bytes() == rig.memory.live_bytes);
    REQUIRE(r.slots == before.slots);
  }
  const Report after = rig.cache.report();
  REQUIRE(after.across_rows < before.across_rows);
  REQUIRE(after.coded_again > 0);
  // Pages with few rows left do not stay for long: never two neighbours that fit one page, one of them half empty.
  for (const auto& layer : rig.cache.layers())
    for (const auto& h : layer.heads) {
      const auto& pages = h.keys.coded().pages();
      for (index_t p = 1; p < pages.size(); ++p) {
        const auto &a = pages[p - 1], &b = pages[p];
        REQUIRE_FALSE(((h.keys.coded().shares(a) || h.keys.coded().shares(b)) && a.live + b.live <= 16 && (2 * a.live <= a.used || 2 * b.live <= b.used)));
      }
    }
}

TEST_CASE("minicache: forks, beams and rollbacks share and part as pages do", "[merge][minicache]") {
  Stream stream{two_layers, std::mt19937(8)};
  test::CacheRig rig(two_layers, recipe(MiniCache{.start = 0.0f}), 256, 64);
  feed(rig, stream.layers(50));
  const auto keys = test::stored(rig.cache, 1, 1, false);
  const std::size_t alone = rig.memory.live_bytes;
  {
    auto fork = rig.cache.fork();
    REQUIRE(fork);
    REQUIRE(fork->report().across_rows == rig.cache.report().across_rows);
    const Report r = fork->report();
    REQUIRE(r.shared_bytes > 0);
    REQUIRE(rig.memory.live_bytes < 2 * alone - r.coded_bytes / 2);  // pages are there once
    REQUIRE(fork->truncate(20) == Status::ok);  // into the second page
    REQUIRE(fork->slots(0, 0) == 20);
    REQUIRE(test::stored(rig.cache, 1, 1, false) == keys);
    auto part = test::stored(*fork, 1, 1, false);
    REQUIRE(std::equal(part.begin(), part.end(), keys.begin()));
    for (int i = 0; i < 30; ++i) {  // and on
      const auto t = stream.layers(1);
      for (index_t l = 0; l < 2; ++l) {
        REQUIRE(fork->append(rig.ctx, l, t[static_cast<std::size_t>(l)].keys(two_layers), t[static_cast<std::size_t>(l)].values(two_layers)) == Status::ok);
        REQUIRE(fork->step(rig.ctx, l) == Status::ok);
      }
    }
    part = test::stored(*fork, 1, 1, false);
    REQUIRE(std::equal(part.begin(), part.begin() + 20 * 32, keys.begin()));
    REQUIRE(fork->slots(1, 0) == 50);
    REQUIRE(test::stored(rig.cache, 1, 1, false) == keys);
  }
  REQUIRE(rig.memory.live_bytes == alone);
  // The original goes first.
  auto fork = rig.cache.fork();
  rig.cache.reset();
  REQUIRE(test::stored(*fork, 1, 1, false) == keys);
  REQUIRE(fork->report().coded_bytes > 0);
  REQUIRE(rig.cache.remove(rig.ctx, 0, 0) == Status::ok);
  REQUIRE(fork->remove(rig.ctx, 3, 14) == Status::ok);
  const auto rest = test::stored(*fork, 1, 1, false);
  REQUIRE(std::equal(rest.begin(), rest.begin() + 3 * 32, keys.begin()));
  for (std::size_t i = 3 * 32; i < rest.size(); ++i) REQUIRE(rest[i] == Approx(keys[i + 11 * 32]).epsilon(1e-3).margin(1e-4));
  Cache<Cpu, decltype(recipe(MiniCache{}))> beams[2];
  beams[0] = std::move(*fork), beams[1] = std::move(*beams[0].fork());
  const index_t map[] = {1, 1};
  REQUIRE(reorder<Cpu, decltype(recipe(MiniCache{}))>(beams, map) == Status::ok);
  REQUIRE(test::stored(beams[0], 1, 1, false) == rest);
}

TEST_CASE("minicache: a file holds shared rows once, and loads to a cache that goes on alike", "[merge][minicache]") {
  test::check_snapshot(two_layers, recipe(MiniCache{.start = 0.0f, .recent = 3}), recipe());
  Stream stream{two_layers, std::mt19937(4)};
  const auto policy = recipe(MiniCache{.start = 0.0f}, evict::Knorm{.tokens = 40, .recent = 4});
  test::CacheRig rig(two_layers, policy, 128, 64);
  test::CacheRig copy(two_layers, policy, 128, 64);
  test::CacheRig plain(two_layers, recipe(), 128, 64);
  test::CacheRig later(two_layers, recipe(), 128, 64);
  const auto prompt = stream.layers(32);
  feed(rig, prompt), feed(plain, prompt);
  test::ByteList file, exact;
  REQUIRE(save(rig.cache, file) == Status::ok);
  REQUIRE(save(plain.cache, exact) == Status::ok);
  REQUIRE(file.bytes.size() < exact.bytes.size() * 3 / 4);
  for (int i = 0; i < 20; ++i) feed(rig, stream.layers(1));  // layers part
  file.bytes.clear();
  REQUIRE(save(rig.cache, file) == Status::ok);
  REQUIRE(load(copy.cache, file.bytes) == Status::ok);
  REQUIRE(copy.cache.report().bytes() == copy.memory.live_bytes);
  REQUIRE(copy.cache.report().across_rows == rig.cache.report().across_rows);
  for (index_t l = 0; l < 2; ++l) REQUIRE(test::stored(copy.cache, l, 1, true) == test::stored(rig.cache, l, 1, true));
  test::ByteList again;
  REQUIRE(save(copy.cache, again) == Status::ok);
  REQUIRE(again.bytes == file.bytes);
  // Another first pair stores other things.
  CacheShape four = two_layers;
  four.layers = 4;
  test::CacheRig upper(four, recipe(MiniCache{}), 64, 64);
  test::CacheRig lower(four, recipe(MiniCache{.start = 0.0f}), 64, 64);
  again.bytes.clear();
  REQUIRE(save(upper.cache, again) == Status::ok);
  REQUIRE(load(lower.cache, again.bytes) == Status::incompatible);
}

TEST_CASE("minicache: forged files never lead outside them", "[merge][minicache]") {
  const CacheShape s{.layers = 2, .q_heads = 1, .kv_heads = 1, .head_dim = 16, .page_slots = 8};
  test::CacheRig rig(s, recipe(MiniCache{.start = 0.0f, .part = 0.1f}), 128, 64);
  test::CacheRig other(s, recipe(MiniCache{.start = 0.0f, .part = 0.1f}), 128, 64);
  Stream stream{s, std::mt19937(4)};
  feed(rig, stream.layers(17));
  REQUIRE(rig.cache.report().across_rows > 0);
  test::ByteList file;
  REQUIRE(save(rig.cache, file) == Status::ok);
  int accepted = 0;
  for (std::size_t i = 12; i + 8 < file.bytes.size(); i += 1)
    for (const int value : {0x00, 0x01, 0x02, 0x7f, 0xff}) {
      auto forged = file.bytes;
      if (forged[i] == static_cast<std::byte>(value)) continue;
      forged[i] = static_cast<std::byte>(value);
      Checksum sum;
      sum.add(std::span(forged).first(forged.size() - 8));
      const std::uint64_t check = sum.value();
      std::memcpy(forged.data() + forged.size() - 8, &check, 8);
      other.memory.peak_bytes = 0;
      const Status status = load(other.cache, forged);
      REQUIRE((status == Status::ok || status == Status::corrupt_data || status == Status::incompatible));
      REQUIRE(other.memory.peak_bytes < 4 * file.bytes.size() + 65536);
      REQUIRE(other.cache.report().bytes() == other.memory.live_bytes);
      accepted += status == Status::ok;
    }
  REQUIRE(accepted > 0);
}

TEST_CASE("minicache: a resource that refuses loses nothing, and what was not merged is merged later", "[merge][minicache]") {
  Stream stream{two_layers, std::mt19937(3)};
  const auto prompt = stream.layers(40);
  const auto make = recipe(MiniCache{.start = 0.0f});
  test::CacheRig whole(two_layers, make, 64, 64);
  feed(whole, prompt);
  const long requests = whole.memory.requests;
  index_t least = 1 << 30, full = 0;
  for (long n = 0; n <= requests; ++n) {
    test::CountingMemory memory;
    auto cache = make_cache<Cpu>(two_layers, make, memory);
    REQUIRE(cache);
    Workspace work;
    REQUIRE(work.reserve(cache->workspace_bytes(41, 40)) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    memory.refuse_from = memory.requests + n;
    for (index_t l = 0; l < 2; ++l) {
      const test::Tokens& t = prompt[static_cast<std::size_t>(l)];
      Status status = cache->append(ctx, l, t.keys(two_layers), t.values(two_layers));
      if (status == Status::out_of_memory) {
        REQUIRE(cache->length(l) == 0);
        memory.refuse_from = -1;
        status = cache->append(ctx, l, t.keys(two_layers), t.values(two_layers));
      }
      REQUIRE(status == Status::ok);
      REQUIRE(cache->step(ctx, l) == Status::ok);  // at worst it merges nothing
      REQUIRE(cache->report().bytes() == memory.live_bytes);
      REQUIRE(cache->slots(l, 1) == 40);
    }
    least = std::min(least, cache->report().across_rows), full = std::max(full, cache->report().across_rows);
    memory.refuse_from = -1;
    const auto t = stream.layers(1);
    for (index_t l = 0; l < 2; ++l) {
      REQUIRE(cache->append(ctx, l, t[static_cast<std::size_t>(l)].keys(two_layers), t[static_cast<std::size_t>(l)].values(two_layers)) == Status::ok);
      REQUIRE(cache->step(ctx, l) == Status::ok);
    }
    REQUIRE(memory.wrong_releases == 0);
    // Two pages, of which as many rows stay as their number at a time says.
    REQUIRE(cache->report().across_rows >= 2 * 2 * two_layers.kv_heads * 30 - 2 * 2 * two_layers.kv_heads);
  }
  REQUIRE(least == 0);
  REQUIRE(full == whole.cache.report().across_rows);
  // One byte of scratch too few is refused before anything is written.
  test::CacheRig rig(two_layers, make, 64, 64);
  REQUIRE(rig.cache.append(rig.ctx, 0, prompt[0].keys(two_layers), prompt[0].values(two_layers)) == Status::ok);
  Context<Cpu> small;
  REQUIRE(rig.cache.step(small, 0) == Status::workspace_too_small);
  REQUIRE(rig.cache.pending(0) == 40);
  REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
}

TEST_CASE("minicache: sequences do not meet, and workers change nothing", "[merge][minicache]") {
  Stream stream{two_layers, std::mt19937(12)};
  const auto one = stream.layers(40), two = stream.layers(33);
  const auto make = recipe(MiniCache{.start = 0.0f});
  test::CacheRig a(two_layers, make, 64, 64);
  test::CacheRig b(two_layers, make, 64, 64);
  feed(a, one), feed(b, two);
  test::CountingMemory memory;
  auto x = make_cache<Cpu>(two_layers, make, memory), y = make_cache<Cpu>(two_layers, make, memory);
  Threads threads;
  Workspace work;
  REQUIRE(work.reserve(x->workspace_bytes(40, 40, 3)) == Status::ok);
  Context<Cpu> ctx(work.bytes(), &threads);
  for (index_t l = 0; l < 2; ++l) {
    const auto at = static_cast<std::size_t>(l);
    REQUIRE(x->append(a.ctx, l, one[at].keys(two_layers), one[at].values(two_layers)) == Status::ok);
    REQUIRE(y->append(a.ctx, l, two[at].keys(two_layers), two[at].values(two_layers)) == Status::ok);
    REQUIRE(x->step(ctx, l) == Status::ok);
    REQUIRE(y->step(ctx, l) == Status::ok);
  }
  REQUIRE(x->report().bytes() + y->report().bytes() == memory.live_bytes);
  for (index_t h = 0; h < 2; ++h) {
    REQUIRE(test::stored(*x, 0, h, false) == test::stored(a.cache, 0, h, false));
    REQUIRE(test::stored(*y, 1, h, true) == test::stored(b.cache, 1, h, true));
  }
}

TEST_CASE("minicache: behind a quantizer directions are coded once for both layers", "[merge][minicache]") {
  CacheShape s = two_layers;
  s.head_dim = 128, s.page_slots = 32;
  Stream stream{s, std::mt19937(10)};
  const auto prompt = stream.layers(100);
  const quant::GroupInt<8> int8{.group_size = 32, .residual_window = 4};
  test::CacheRig plain(s, recipe(int8), 128, 128);
  test::CacheRig rig(s, recipe(int8, MiniCache{.start = 0.0f, .part = 0.03f}), 128, 128);
  test::CacheRig exact(s, recipe(), 128, 128);
  feed(plain, prompt), feed(rig, prompt), feed(exact, prompt);
  const Report r = rig.cache.report(), p = plain.cache.report();
  REQUIRE(r.bytes() == rig.memory.live_bytes);
  REQUIRE(r.across_rows == 2 * 2 * s.kv_heads * (96 - 3));
  REQUIRE(static_cast<double>(r.coded_bytes) < 0.65 * static_cast<double>(p.coded_bytes));
  index_t same = 0;
  const auto was = test::stored(exact.cache, 1, 0, false), is = test::stored(rig.cache, 1, 0, false);
  for (std::size_t i = 0; i < 96; ++i) same += std::equal(was.begin() + static_cast<long>(i * 128), was.begin() + static_cast<long>((i + 1) * 128), is.begin() + static_cast<long>(i * 128));
  REQUIRE(same == 3);
  // Two bits a number are less than what a layer keeps of its own: pages are coded as ever.
  const quant::Kivi<2> kivi{.group_size = 16, .residual_window = 32};
  test::CacheRig two(s, recipe(kivi, MiniCache{.start = 0.0f, .part = 0.2f}), 128, 128);
  test::CacheRig bits(s, recipe(kivi), 128, 128);
  feed(two, prompt), feed(bits, prompt);
  REQUIRE(two.cache.report().across_rows == 0);
  REQUIRE(two.cache.layers()[1].heads[0].keys.coded().live() > 60);
  for (std::size_t i = 0; i < 32 * 128; ++i) REQUIRE(test::stored(two.cache, 0, 1, false)[i] == test::stored(bits.cache, 0, 1, false)[i]);
}

TEST_CASE("minicache: what cannot be is refused when the cache is made", "[merge][minicache]") {
  const auto status = [](const auto& r, index_t layers = 4) {
    CacheShape s = two_layers;
    s.layers = layers;
    return make_cache<Cpu>(s, r).status();
  };
  REQUIRE(status(recipe(MiniCache{})) == Status::ok);
  REQUIRE(status(recipe(MiniCache{.weight = 1.1f})) == Status::invalid_argument);
  REQUIRE(status(recipe(MiniCache{.weight = NAN})) == Status::invalid_argument);
  REQUIRE(status(recipe(MiniCache{.start = -0.1f})) == Status::invalid_argument);
  REQUIRE(status(recipe(MiniCache{.part = 2.0f})) == Status::invalid_argument);
  REQUIRE(status(recipe(MiniCache{.recent = -1})) == Status::invalid_argument);
  REQUIRE(status(recipe(MiniCache{.start = 0.76f})) == Status::invalid_argument);  // one layer is no pair
  REQUIRE(status(recipe(MiniCache{}), 2) == Status::invalid_argument);
  REQUIRE(status(recipe(MiniCache{}), 3) == Status::ok);
  REQUIRE(status(recipe(MiniCache{}, quant::MiKV{})) == Status::incompatible);
}

TEST_CASE("minicache: any calls, against a naive cache", "[merge][minicache]") {
  const std::uint32_t seed = GENERATE(range(1u, 9u));
  const quant::GroupInt<4> int4{.group_size = 16, .residual_window = 6};
  test::exercise(two_layers, recipe(MiniCache{.start = 0.0f}, int4, evict::Knorm{.tokens = 60, .recent = 40}), seed, 30, 30.0);
  test::exercise(two_layers, recipe(MiniCache{.start = 0.0f}), seed, 30, 30.0);
  test::exercise(two_layers, recipe(MiniCache{.start = 0.0f, .part = 0.3f}, evict::Knorm{.tokens = 60, .recent = 40}), seed, 30, 30.0);
  test::exercise(two_layers, recipe(MiniCache{.start = 0.0f}, evict::SinkWindow{.recent = 60, .sinks = 4}), seed, 30, 30.0);
}
