#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/prim/rank_bits.hpp>
#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

using Ints = std::vector<index_t>;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

nlohmann::json ties() { return test::load_oracle("eviction.json", "block_topk_ties"); }

/// a before b: larger score, then smaller row, then smaller place; NaN last.
struct Place {
  float score;
  index_t row, place;
  bool operator<(const Place& o) const {
    const bool bad = std::isnan(score), worse = std::isnan(o.score);
    if (bad != worse) return worse;
    if (!bad && score != o.score) return score > o.score;
    return row != o.row ? row < o.row : place < o.place;
  }
};

struct Rows {
  std::vector<std::vector<float>> rows;
  Ints offset{0};
  std::vector<float> flat;

  explicit Rows(std::vector<std::vector<float>> r) : rows(std::move(r)) {
    for (const auto& row : rows) {
      flat.insert(flat.end(), row.begin(), row.end());
      offset.push_back(static_cast<index_t>(flat.size()));
    }
  }
  index_t heads() const { return static_cast<index_t>(rows.size()); }
  RaggedView<const float> view() const { return {flat.data(), offset.data(), heads()}; }
};

struct Kept {
  Status status;
  std::vector<Ints> places;
  index_t nan = 0;
};

Kept top_k(const Rows& r, const Ints& total, const std::vector<prim::Ends>& always = {},
           prim::Ties ties = prim::Ties::first) {
  test::Guarded<std::int32_t> slots(r.flat.size(), -1);
  test::Guarded<index_t> count(at(r.heads()));
  Context<Cpu> ctx;
  Kept k;
  k.status = prim::TopK<Cpu>::run(ctx, r.view(), always.empty() ? nullptr : always.data(), total.data(),
                                  {slots.data(), r.offset.data(), r.heads()}, count.data(), &k.nan, ties);
  for (index_t h = 0; h < r.heads(); ++h) {
    const std::int32_t* row = slots.data() + r.offset[at(h)];
    k.places.emplace_back(row, row + count.data()[at(h)]);
  }
  REQUIRE(slots.ok());
  REQUIRE(count.ok());
  return k;
}

Ints counts(const Rows& r, index_t k, const std::vector<prim::Ends>& skip = {}, const Ints& own = {}, bool strict = false) {
  test::Guarded<index_t> count(at(r.heads()));
  std::vector<std::byte> memory(Scratch::bytes_for<prim::RowCutoff>(r.heads()) + Scratch::align);
  Scratch scratch(memory);
  Context<Cpu> ctx;
  REQUIRE(prim::TopKCounts<Cpu>::run(ctx, r.view(), skip.empty() ? nullptr : skip.data(),
                                     own.empty() ? nullptr : own.data(), k, count.data(),
                                     scratch, strict) == Status::ok);
  REQUIRE(count.ok());
  return Ints(count.data(), count.data() + r.heads());
}

/// Few different values, so that ties, infinities, zeros of both signs and NaN all meet.
float drawn(std::mt19937& random, bool coarse) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const float special[] = {std::nanf(""), -std::nanf(""), inf, -inf, 0.0f, -0.0f, 1e-42f, -1e-42f, 3e38f};
  if (random() % 8 == 0) return special[random() % 9];
  std::normal_distribution<float> normal;
  return coarse ? static_cast<float>(static_cast<int>(random() % 7) - 3) : normal(random);
}

Rows drawn_rows(std::mt19937& random, bool coarse) {
  constexpr index_t sizes[] = {0, 1, 2, 31, 32, 33, 257, 3000};
  std::vector<std::vector<float>> rows(1 + random() % 5);
  for (auto& row : rows) {
    row.resize(at(sizes[random() % 8]));
    for (float& x : row) x = drawn(random, coarse);
  }
  return Rows(rows);
}

}  // namespace

TEST_CASE("top_k: equal scores keep the smaller place", "[prim][top_k]") {
  const auto oracle = ties();
  const Rows r({oracle["scores"].get<std::vector<float>>()});
  for (const auto& [k, kept] : oracle["kept"].items())
    REQUIRE(top_k(r, {std::stoll(k)}).places[0] == kept.get<Ints>());
}

TEST_CASE("top_k: with the other order of ties the larger places stay", "[prim][top_k]") {
  const auto last = [](std::vector<float> scores, index_t total, prim::Ends ends = {}) {
    return top_k(Rows(std::vector<std::vector<float>>{std::move(scores)}), {total}, {ends}, prim::Ties::last).places[0];
  };
  REQUIRE(last({1, 1, 1, 1, 1}, 2) == Ints{3, 4});
  REQUIRE(last({1, 2, 1, 2, 1}, 3) == Ints{1, 3, 4});
  REQUIRE(last({1, 1, 1, 1, 1}, 3, {1, 1}) == Ints{0, 3, 4});
  REQUIRE(last({1, 1, 1}, 0).empty());
  REQUIRE(last({1, 1, 1}, 3) == Ints{0, 1, 2});
  REQUIRE(last({0.0f, -0.0f, 0.0f, NAN, NAN}, 4) == Ints{0, 1, 2, 4});
  // The mirror image of the usual order, for any scores.
  std::mt19937 random(9);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> s(1 + random() % 40);
    for (float& x : s) x = static_cast<float>(random() % 5);
    const auto n = static_cast<index_t>(s.size()), total = static_cast<index_t>(random() % s.size());
    const std::vector<float> back(s.rbegin(), s.rend());
    Ints want;
    const Kept mirror = top_k(Rows(std::vector<std::vector<float>>{back}), {total});
    for (const index_t i : mirror.places[0]) want.push_back(n - 1 - i);
    std::reverse(want.begin(), want.end());
    REQUIRE(last(s, total) == want);
  }
}

TEST_CASE("top_k: one that leaves is the lowest, whatever is equal to it", "[prim][top_k]") {
  std::mt19937 random(5);
  const auto nan = std::numeric_limits<float>::quiet_NaN();
  for (int round = 0; round < 200; ++round) {
    const auto n = 1 + random() % 40;
    std::vector<float> row(n);
    for (float& x : row) x = random() % 13 == 0 ? nan : static_cast<float>(random() % 5) - 2.0f;
    const prim::Ends ends{static_cast<index_t>(random() % 3), static_cast<index_t>(random() % 3)};
    for (const auto order : {prim::Ties::first, prim::Ties::last}) {
      const Rows one({row});
      const Kept kept = top_k(one, {static_cast<index_t>(n) - 1}, {ends}, order);
      Ints want;
      const auto first = static_cast<std::size_t>(ends.within(static_cast<index_t>(n)).prefix);
      const auto last = n - static_cast<std::size_t>(ends.within(static_cast<index_t>(n)).suffix);
      std::size_t gone = last;
      const auto below = [](float a, float b) { return std::isnan(a) ? !std::isnan(b) : !std::isnan(b) && a < b; };
      index_t bad = 0;
      for (std::size_t i = first; i < last; ++i) {
        bad += std::isnan(row[i]);
        const bool better = gone == last || below(row[i], row[gone]);
        const bool equal = gone != last && !below(row[i], row[gone]) && !below(row[gone], row[i]);
        if (better || (equal && order == prim::Ties::first)) gone = i;
      }
      for (std::size_t i = 0; i < n; ++i)
        if (i != gone || first == last) want.push_back(static_cast<index_t>(i));
      REQUIRE(kept.places[0] == want);
      REQUIRE(kept.nan == (first == last ? 0 : bad));
    }
  }
}

TEST_CASE("top_k: across rows equal scores keep the smaller row, then the smaller place", "[prim][top_k]") {
  const auto oracle = ties()["global_two_heads"];
  const Rows r(oracle["scores"].get<std::vector<std::vector<float>>>());
  const Ints won = counts(r, oracle["k"]);
  for (index_t h = 0; h < 2; ++h) {
    const auto kept = oracle["kept"][at(h)].get<Ints>();
    REQUIRE(won[at(h)] == static_cast<index_t>(kept.size()));
    REQUIRE(top_k(r, won).places[at(h)] == kept);
  }
}

TEST_CASE("top_k: equals sorting every row", "[prim][top_k]") {
  const std::uint32_t seed = GENERATE(range(0u, 60u));
  const bool coarse = seed % 2 == 0;
  CAPTURE(seed, coarse);
  std::mt19937 random(seed);
  const Rows r = drawn_rows(random, coarse);
  Ints total;
  std::vector<prim::Ends> always;
  for (const auto& row : r.rows) {
    const auto n = static_cast<index_t>(row.size());
    total.push_back(static_cast<index_t>(random() % at(n + 3)) - 1);
    always.push_back({static_cast<index_t>(random() % 5), static_cast<index_t>(random() % 5)});
  }
  const Kept got = top_k(r, total, always);
  REQUIRE(got.status == Status::ok);
  index_t nan = 0;
  for (index_t h = 0; h < r.heads(); ++h) {
    const auto& row = r.rows[at(h)];
    const auto n = static_cast<index_t>(row.size());
    const prim::Ends e = always[at(h)].within(n);
    std::vector<Place> order;
    Ints want;
    for (index_t i = 0; i < n; ++i)
      if (total[at(h)] >= n || i < e.prefix || i >= n - e.suffix) want.push_back(i);
      else order.push_back({row[at(i)], h, i}), nan += std::isnan(row[at(i)]);
    std::sort(order.begin(), order.end());
    const auto open = static_cast<index_t>(order.size());
    for (index_t i = 0; i < std::min(open, total[at(h)] - e.size()); ++i) want.push_back(order[at(i)].place);
    std::sort(want.begin(), want.end());
    CAPTURE(h, n, total[at(h)]);
    REQUIRE(got.places[at(h)] == want);
  }
  REQUIRE(got.nan == nan);
}

TEST_CASE("top_k: counts of winners equal sorting all rows together", "[prim][top_k]") {
  const std::uint32_t seed = GENERATE(range(100u, 160u));
  const bool coarse = seed % 2 == 0;
  CAPTURE(seed, coarse);
  std::mt19937 random(seed);
  const Rows r = drawn_rows(random, coarse);
  std::vector<prim::Ends> skip;
  Ints own, want;
  std::vector<Place> all;
  for (index_t h = 0; h < r.heads(); ++h) {
    const auto& row = r.rows[at(h)];
    skip.push_back(prim::Ends{static_cast<index_t>(random() % 4), static_cast<index_t>(random() % 4)});
    const prim::Ends e = skip.back().within(static_cast<index_t>(row.size()));
    std::vector<Place> order;
    for (index_t i = e.prefix; i < static_cast<index_t>(row.size()) - e.suffix; ++i) order.push_back({row[at(i)], h, i});
    std::sort(order.begin(), order.end());
    own.push_back(static_cast<index_t>(random() % 6));
    want.push_back(std::min<index_t>(own.back(), static_cast<index_t>(order.size())));
    all.insert(all.end(), order.begin() + want.back(), order.end());
  }
  std::sort(all.begin(), all.end());
  const auto k = static_cast<index_t>(random() % (all.size() + 3));
  const auto places = std::min<index_t>(k, static_cast<index_t>(all.size()));
  const bool full = places == static_cast<index_t>(all.size());
  Ints above = want;
  for (index_t i = 0; i < places; ++i) {
    ++want[at(all[at(i)].row)];
    above[at(all[at(i)].row)] += full || prim::rank_bits(all[at(i)].score) > prim::rank_bits(all[at(places - 1)].score);
  }
  REQUIRE(counts(r, k, skip, own) == want);
  REQUIRE(counts(r, k, skip, own, true) == above);
}

TEST_CASE("top_k: a cutoff found from the few that lose is the one that counting finds", "[prim][top_k]") {
  std::mt19937 random(11);
  for (const index_t n : {1, 2, 31, 32, 33, 64, 500})
    for (const int values : {1, 3, 50, 1 << 30})
      for (index_t k = 1; k <= n; ++k) {
        std::vector<std::uint32_t> keys(static_cast<std::size_t>(n));
        for (std::uint32_t& x : keys) x = static_cast<std::uint32_t>(random() % static_cast<unsigned>(values));
        const auto each = [&](auto&& use) {
          for (const std::uint32_t x : keys) use(x);
        };
        const auto counted = prim::find_cutoff(k, each), known = prim::find_cutoff(k, n, each);
        REQUIRE(counted.bits == known.bits);
        REQUIRE(counted.ties == known.ties);
      }
}

TEST_CASE("top_k: a workspace one byte short is refused", "[prim][top_k]") {
  const Rows r({{1.0f, 2.0f}, {3.0f}});
  alignas(64) std::byte memory[256];
  const std::size_t need = Scratch::bytes_for<prim::RowCutoff>(2);
  REQUIRE(need <= sizeof memory);
  Scratch scratch({memory, need - 1});
  index_t count[2] = {-7, -7};
  Context<Cpu> ctx;
  REQUIRE(prim::TopKCounts<Cpu>::run(ctx, r.view(), nullptr, nullptr, 1, count, scratch) ==
          Status::workspace_too_small);
  REQUIRE(count[0] == -7);
}

TEST_CASE("top_k: ends are listed once, in order, however they overlap", "[prim][top_k]") {
  for (index_t n = 0; n < 6; ++n)
    for (index_t prefix = 0; prefix < 8; ++prefix)
      for (index_t suffix = 0; suffix < 8; ++suffix) {
        const index_t offset[] = {0, n};
        test::Guarded<std::int32_t> slots(at(n));
        index_t count = -1;
        Context<Cpu> ctx;
        const prim::Ends ends{prefix, suffix};
        REQUIRE(prim::KeepEnds<Cpu>::run(ctx, &ends, {slots.data(), offset, 1}, &count) == Status::ok);
        Ints want;
        for (index_t i = 0; i < n; ++i)
          if (i < prefix || i >= n - suffix) want.push_back(i);
        REQUIRE(Ints(slots.data(), slots.data() + count) == want);
        REQUIRE(slots.ok());
      }
}
