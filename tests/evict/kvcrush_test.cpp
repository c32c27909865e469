#include <kvcondense/evict/kvcrush.hpp>

#include <algorithm>
#include <random>

#include <evict/properties.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/lagkv.hpp>
#include <kvcondense/evict/snapkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

using Word = prim::Representatives<Cpu>;

/// Scores of heads, ends that stay, what is kept, and the word over them.
struct Rig {
  Ints offset{0};
  std::vector<float> scores;
  Guarded<float> distance;
  Guarded<std::int32_t> slots;
  std::vector<prim::Ends> skip;
  Ints kept, count;

  explicit Rig(const std::vector<std::vector<float>>& rows) : distance(total(rows)), slots(total(rows)) {
    for (const auto& row : rows) {
      scores.insert(scores.end(), row.begin(), row.end());
      offset.push_back(static_cast<index_t>(scores.size()));
      skip.push_back({}), kept.push_back(0), count.push_back(0);
    }
  }
  static std::size_t total(const std::vector<std::vector<float>>& rows) {
    std::size_t n = 0;
    for (const auto& row : rows) n += row.size();
    return n;
  }
  RaggedView<float> d() { return {distance.data(), offset.data(), static_cast<index_t>(skip.size())}; }
  RaggedView<std::int32_t> list() { return {slots.data(), offset.data(), static_cast<index_t>(skip.size())}; }
  Status distances(const prim::SignatureRequest& r, const Ints& top) {
    Context<Cpu> ctx;
    return Word::distances(ctx, r, {scores.data(), offset.data(), static_cast<index_t>(skip.size())}, skip.data(), top.data(), d());
  }
  Status pick(index_t block) {
    Context<Cpu> ctx;
    return Word::pick(ctx, block, d(), skip.data(), count.data(), list(), kept.data());
  }
  Ints picked(index_t h) { return {list().row(h), list().row(h) + kept[at(h)]}; }
};

}  // namespace

TEST_CASE("kvcrush: the oracle's distances and representatives of tokens", "[evict][kvcrush]") {
  const auto o = load_oracle("merging_lowrank.json", "kvcrush_token");
  const auto bits = o["inputs"]["bits"].get<std::vector<std::vector<float>>>();
  // Scores of a head: its bits, so that its best are those that have one.
  std::vector<std::vector<float>> rows(4, std::vector<float>(8));
  Ints top(4);
  for (std::size_t j = 0; j < 8; ++j)
    for (std::size_t h = 0; h < 4; ++h) rows[h][j] = bits[j][h], top[h] += bits[j][h] > 0;
  Rig r(rows);
  REQUIRE(r.distances({.anchor = prim::SignatureAnchor::alternating}, top) == Status::ok);
  const auto want = o["expected"]["hamming"].get<std::vector<float>>();
  for (index_t h = 0; h < 4; ++h) REQUIRE(std::vector<float>(r.d().row(h), r.d().row(h) + 8) == want);
  r.count = Ints(4, o["params"]["representatives"].get<index_t>());
  REQUIRE(r.pick(0) == Status::ok);
  Ints reps = o["expected"]["representatives"].get<Ints>();
  std::sort(reps.begin(), reps.end());
  for (index_t h = 0; h < 4; ++h) REQUIRE(r.picked(h) == reps);
  REQUIRE((r.distance.ok() && r.slots.ok()));
}

TEST_CASE("kvcrush: the oracle's distances of blocks", "[evict][kvcrush]") {
  const auto o = load_oracle("merging_lowrank.json", "kvcrush_block");
  Rig r({o["inputs"]["scores"].get<std::vector<float>>()});
  REQUIRE(r.distances({.anchor = prim::SignatureAnchor::alternating, .block = 4}, {0}) == Status::ok);
  const auto want = o["expected"]["block_hamming"].get<std::vector<float>>();
  for (std::size_t j = 0; j < 12; ++j) REQUIRE(r.distance.data()[j] == want[j / 4]);
  // One block of the order 2, 1, 0: the first.
  r.count = {4};
  REQUIRE(r.pick(4) == Status::ok);
  REQUIRE(r.picked(0) == Ints{8, 9, 10, 11});
}

TEST_CASE("kvcrush: anchors, kept slots, blocks that are not whole, and more wanted than there is", "[evict][kvcrush]") {
  const std::vector<float> x{9, 1, 8, 2, 7, 3, 6, 4, 5, 0};
  Rig r({x});
  using A = prim::SignatureAnchor;
  const auto first = [&](A anchor, std::uint64_t seed) {
    REQUIRE(r.distances({.anchor = anchor, .seed = seed}, {5}) == Status::ok);
    return r.distance.data()[0];
  };
  REQUIRE(first(A::zeros, 0) == 1.0f);
  REQUIRE(first(A::ones, 0) == 0.0f);
  REQUIRE(first(A::alternating, 0) == 1.0f);  // bit 0 of the anchor is 0
  REQUIRE(first(A::mean, 0) == 1.0f);         // five of ten are not more than half
  int ones = 0;
  for (std::uint64_t seed = 0; seed < 40; ++seed) ones += first(A::random, seed) == 0.0f;
  REQUIRE((ones > 5 && ones < 35));

  // Between ends of two and one: seven candidates in blocks of three, the last not whole; one block holds a kept slot.
  Rig b({x});
  b.skip = {{2, 1}};
  b.slots.data()[0] = 0, b.slots.data()[1] = 1, b.slots.data()[2] = 3, b.slots.data()[3] = 9;
  b.kept = {4}, b.count = {6};
  REQUIRE(b.distances({.anchor = A::ones, .block = 3}, {0}) == Status::ok);
  REQUIRE(b.pick(3) == Status::ok);
  REQUIRE(b.picked(0) == Ints{0, 1, 3, 5, 6, 7, 9});
  REQUIRE((b.distance.ok() && b.slots.ok()));

  Rig other({{1, 2, 3}, {1, 2}});
  REQUIRE(other.distances({}, {1, 1}) == Status::not_supported);
  REQUIRE(other.distances({.block = 2}, {1, 1}) == Status::ok);
}

TEST_CASE("kvcrush: a part of the budget goes to representatives, the rest to the policy's best", "[evict][kvcrush]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 8};
  const evict::SnapKV snap{.tokens = 24, .window = 4, .kernel = 1};
  const PerToken mass = [](index_t h, index_t t) { return 1.0 + static_cast<double>((t * 37 + h * 11) % 101); };
  const auto kept = [&](double share, index_t block) {
    auto d = drive(shape, evict::KVCrush<evict::SnapKV>{.policy = snap, .share = share, .block = block, .anchor = prim::SignatureAnchor::ones});
    REQUIRE(d.step(80, Phase::prefill_end, mass) == Status::ok);
    for (index_t h = 0; h < 2; ++h) {
      REQUIRE(std::is_sorted(d.kept[at(h)].begin(), d.kept[at(h)].end()));
      REQUIRE(std::adjacent_find(d.kept[at(h)].begin(), d.kept[at(h)].end()) == d.kept[at(h)].end());
      REQUIRE(d.kept[at(h)].size() <= 24);
      REQUIRE(d.budget[at(h)] == 24);
    }
    return d.kept;
  };
  auto plain = drive(shape, snap);
  REQUIRE(plain.step(80, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(kept(0.0, 0) == plain.kept);
  const auto some = kept(0.25, 0);
  for (std::size_t h = 0; h < 2; ++h) {
    REQUIRE(some[h].size() == 24);
    Ints both;
    std::set_intersection(some[h].begin(), some[h].end(), plain.kept[h].begin(), plain.kept[h].end(), std::back_inserter(both));
    REQUIRE(both.size() >= 19);  // 15 by score, 4 of the window
    REQUIRE(both.size() < 24);
  }
  REQUIRE(kept(0.5, 0) != some);
  REQUIRE(kept(0.5, 5) != kept(0.5, 0));
  REQUIRE(kept(1.0, 0)[0].size() == 24);
}

TEST_CASE("kvcrush: fields and policies that do not fit are refused", "[evict][kvcrush]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 32};
  using K = evict::KVCrush<evict::H2O>;
  REQUIRE(K{}.validate(shape) == Status::ok);
  for (const K& k : {K{.share = 1.5}, K{.share = -0.1}, K{.block = -1}, K{.seed = -1}, K{.policy = {.heavy = -1}}})
    REQUIRE(k.validate(shape) == Status::invalid_argument);
  REQUIRE(evict::KVCrush<evict::LagKV>{}.validate(shape) == Status::incompatible);
}

TEST_CASE("kvcrush: representatives are at equal steps of the order by distance, of few distances and of many", "[evict][kvcrush]") {
  std::mt19937 random(8);
  for (const unsigned levels : {1u, 9u, 33u, 100u})
    for (int round = 0; round < 20; ++round) {
      const auto n = static_cast<index_t>(1 + random() % 90);
      Rig r({std::vector<float>(at(n))});
      r.skip = {{static_cast<index_t>(random() % 3), static_cast<index_t>(random() % 3)}};
      r.skip = {r.skip[0].within(n)};
      Ints open;
      for (index_t j = 0; j < n; ++j) {
        r.distance.data()[j] = static_cast<float>(random() % levels);
        const bool keeps = random() % 4 == 0;
        if (keeps) r.slots.data()[r.kept[0]++] = static_cast<std::int32_t>(j);
        if (!keeps && j >= r.skip[0].prefix && j < n - r.skip[0].suffix) open.push_back(j);
      }
      r.count = {static_cast<index_t>(random() % at(n))};
      Ints want = r.picked(0);
      std::stable_sort(open.begin(), open.end(), [&](index_t a, index_t b) { return r.distance.data()[a] < r.distance.data()[b]; });
      const index_t size = static_cast<index_t>(open.size()), wanted = std::min(size, r.count[0]);
      for (index_t i = 0; i < wanted; ++i) want.push_back(open[at(i * (size / wanted))]);
      std::sort(want.begin(), want.end());
      CAPTURE(levels, round, n);
      REQUIRE(r.pick(1) == Status::ok);
      REQUIRE(r.picked(0) == want);
      REQUIRE((r.distance.ok() && r.slots.ok()));
    }
}
