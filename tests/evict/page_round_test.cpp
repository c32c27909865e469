#include <algorithm>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/evict/chunkkv.hpp>
#include <kvcondense/evict/duo_attention.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keep_all.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/lagkv.hpp>
#include <kvcondense/evict/page_round.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using evict::PageRound;

namespace {

/// The areas of the oracle: two sinks, two recent slots, eight in all.
struct Paged {
  [[maybe_unused]] static constexpr Descriptor about{"paged", Stage::evict, "test"};
  [[maybe_unused]] static constexpr Inputs needs = Input::attention;
  auto pipeline() const {
    using namespace evict;
    return Pipeline{AttentionMass<PerHead, RunningSum>{all_rows()}, NoPool{}, Both{Sinks{2}, Recent{2}}, Absolute{8}, TopK{}, EveryStep{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

const PerToken mass = [](index_t h, index_t t) { return number(9, h, t); };

}  // namespace

TEST_CASE("page_round: whole pages leave, the lowest sums first, and pages that are begun stay", "[evict][page_round]") {
  const auto oracle = eviction_oracle("paged_h2o");
  const auto& params = oracle["params"];
  REQUIRE((params["block"] == 2 && params["start"] == 2 && params["recent"] == 2 && params["max_cache"] == 8));
  const auto score = [&](index_t, index_t t) { return t < 2 ? 0.0 : oracle["accumulated"][at(t - 2)].get<double>(); };
  auto d = drive({}, PageRound{Paged{}, 2});
  REQUIRE(d.step(12, Phase::prefill_end, score) == Status::ok);
  Ints want;  // its plain sums, without lifetimes
  for (const index_t p : oracle["sum"]["kept_pages"]) want.push_back(2 * p), want.push_back(2 * p + 1);
  REQUIRE(d.held[0] == want);
}

TEST_CASE("page_round: what stays is aligned, within the budget, and the best of what may leave", "[evict][page_round]") {
  const index_t page = GENERATE(1, 4, 8, 16), group = GENERATE(1, 3, 7);
  CAPTURE(page, group);
  const index_t n = 101, window = 6, budget = 60;
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = 8};
  auto d = drive(shape, PageRound{evict::SnapKV{.tokens = budget, .window = window, .kernel = 1}, page});
  REQUIRE(d.step(n, Phase::prefill_end, mass) == Status::ok);
  const index_t whole = (n - window) / page;  // pages that may leave
  const index_t stays = n - whole * page, room = (budget - stays) / page;
  for (index_t h = 0; h < 2; ++h) {
    Ints order(at(whole)), want;
    std::iota(order.begin(), order.end(), 0);
    const auto sum = [&](index_t p) {
      double s = 0;
      for (index_t t = p * page; t < (p + 1) * page; ++t) s += mass(h, t);
      return s;
    };
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return sum(a) > sum(b); });
    for (index_t p = 0; p < room; ++p)
      for (index_t t = 0; t < page; ++t) want.push_back(order[at(p)] * page + t);
    for (index_t t = whole * page; t < n; ++t) want.push_back(t);
    std::sort(want.begin(), want.end());
    REQUIRE(d.held[at(h)] == want);
    REQUIRE(static_cast<index_t>(want.size()) <= budget);
    REQUIRE(static_cast<index_t>(want.size()) > budget - page);
  }
}

TEST_CASE("page_round: while tokens come one by one a page leaves at a time", "[evict][page_round]") {
  auto d = drive({.q_heads = 2, .kv_heads = 2, .head_dim = 4}, PageRound{evict::H2O{.heavy = 16, .recent = 4}, 4});
  index_t before = 0;
  for (int i = 0; i < 80; ++i) {
    REQUIRE(d.step(1, Phase::decode, mass) == Status::ok);
    const auto now = static_cast<index_t>(d.held[0].size());
    REQUIRE((now == before + 1 || now == before - 3));
    REQUIRE(now <= 20 + 3);
    before = now;
  }
}

TEST_CASE("page_round: leaves a cache no page that is part dead", "[evict][page_round]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 8, .page_slots = 8};
  const auto dead = [&](const auto& policy) {
    CacheRig rig(shape, recipe(policy), 128, 96);
    std::mt19937 random(5);
    for (const index_t n : {90, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}) {
      const Tokens t(shape, n, random);
      std::vector<float> out(t.q.size());
      REQUIRE(rig.cache.forward(rig.ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 2, n, 8)) == Status::ok);
    }
    REQUIRE(rig.cache.report().evictions > 0);
    return rig.cache.report().dead_bytes;
  };
  const evict::KeyDiff policy{.tokens = 48, .recent = 4};
  REQUIRE(dead(policy) > 0);
  REQUIRE(dead(PageRound{policy, 8}) == 0);
}

TEST_CASE("page_round: over duo_attention the pages of LServe's streaming heads",
          "[evict][page_round]") {
  const auto o = load_oracle("eviction.json", "lserve");
  const index_t page = o["block"], n = o["example"]["tokens"];
  const float gates[] = {0.9f, 0.1f};
  const evict::DuoAttention heads{.sparsity = 0.5,
                                  .sinks = o["dec_sink_tokens"],
                                  .recent = o["dec_local_tokens"],
                                  .gates = {gates, 1, 2}};
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 4};
  auto d = drive(shape, PageRound{heads, page});
  REQUIRE(d.step(n, Phase::prefill_end) == Status::ok);
  REQUIRE(static_cast<index_t>(d.held[0].size()) == n);  // a retrieval head
  Ints want;
  for (const index_t p : o["example"]["resident_blocks"])
    for (index_t t = p * page; t < std::min((p + 1) * page, n); ++t) want.push_back(t);
  REQUIRE(d.held[1] == want);
  // Constant from there on: a page leaves when one more is begun.
  const auto most = static_cast<index_t>(o["total_blocks"]) * page;
  for (int i = 0; i < 300; ++i) {
    const auto before = static_cast<index_t>(d.held[1].size());
    REQUIRE(d.step(1, Phase::decode) == Status::ok);
    const auto now = static_cast<index_t>(d.held[1].size());
    REQUIRE((now == before + 1 || now == before + 1 - page));
    REQUIRE(now <= most);
    REQUIRE(d.held[1][at(o["dec_sink_tokens"])] % page == 0);
  }
}

TEST_CASE("page_round: windows begin at pages, and hold their budget", "[evict][page_round]") {
  const index_t page = GENERATE(1, 4, 16);
  CAPTURE(page);
  const auto run = [&](const auto& policy, index_t sinks, index_t budget) {
    auto d = drive({.head_dim = 4}, PageRound{policy, page});
    const index_t first = (sinks + page - 1) / page * page;
    for (const index_t n : {50, 1, 1, 7, 30, 1, 1, 1, 1, 1, 1, 1}) {
      REQUIRE(d.step(n, Phase::decode) == Status::ok);
      const index_t begin = (d.seen - (budget - first)) / page * page;
      Ints want;
      for (index_t t = 0; t < d.seen; ++t)
        if (t < first || t >= begin) want.push_back(t);
      REQUIRE(d.held[0] == want);
      REQUIRE(static_cast<index_t>(want.size()) >= budget);
    }
  };
  run(evict::SlidingWindow{.window = 21}, 0, 21);
  run(evict::SinkWindow{.recent = 27, .sinks = 5}, 5, 32);
  check_promises(PageRound{evict::SinkWindow{.recent = 20, .sinks = 4}, 4},
                 PageRound{evict::SinkWindow{.recent = 300, .sinks = 4}, 4},
                 {.fills_budget = false});
}

TEST_CASE("page_round: keeps the promises of a pipeline, but for places that no page fits", "[evict][page_round]") {
  check_promises(PageRound{evict::SnapKV{.tokens = 24, .window = 4}, 4}, PageRound{evict::SnapKV{.tokens = 300, .window = 4}, 4},
                 {.fills_budget = false});
  check_promises(PageRound{evict::H2O{.heavy = 20, .recent = 4}, 1}, PageRound{evict::H2O{.heavy = 300, .recent = 4}, 1});
}

TEST_CASE("page_round: refused without a page, and where slots are not chosen one by one", "[evict][page_round]") {
  REQUIRE(PageRound{evict::H2O{}, 0}.validate({}) == Status::invalid_argument);
  REQUIRE(PageRound{evict::H2O{.heavy = -1}, 4}.validate({}) == Status::invalid_argument);
  REQUIRE(PageRound{evict::Tova{}, 4}.validate({}) == Status::ok);
  REQUIRE(PageRound{evict::ChunkKV{}, 4}.validate({}) == Status::incompatible);
  REQUIRE(PageRound{evict::LagKV{}, 4}.validate({}) == Status::incompatible);
  REQUIRE(PageRound{evict::KeepAll{}, 4}.validate({}) == Status::incompatible);
}
