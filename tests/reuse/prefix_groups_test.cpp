#include <algorithm>
#include <catch2/catch.hpp>
#include <kvcondense/reuse/prefix_groups.hpp>
#include <map>
#include <random>
#include <set>
#include <support/memory.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using reuse::PrefixGroups;
using Tokens = std::vector<std::int32_t>;

namespace {

std::vector<std::span<const std::int32_t>> spans(const std::vector<Tokens>& all) { return {all.begin(), all.end()}; }

Tokens joined(std::initializer_list<Tokens> parts) {
  Tokens all;
  for (const Tokens& p : parts) all.insert(all.end(), p.begin(), p.end());
  return all;
}

/// What one depth for all would save.
index_t cut_saving(const std::vector<Tokens>& all, std::size_t depth) {
  std::map<Tokens, index_t> groups;
  for (const Tokens& t : all)
    if (t.size() >= depth) ++groups[Tokens(t.begin(), t.begin() + static_cast<std::ptrdiff_t>(depth))];
  index_t saved = 0;
  for (const auto& [prefix, n] : groups) saved += (n - 1) * static_cast<index_t>(depth);
  return saved;
}

/// What any groups of neighbours in sorted order could save, also those that mix levels of the tree.
index_t most_saving(std::vector<Tokens> s) {
  std::sort(s.begin(), s.end());
  std::vector<index_t> best(s.size() + 1, 0);
  for (std::size_t end = 1; end <= s.size(); ++end) {
    best[end] = best[end - 1];
    for (std::size_t begin = 0; begin + 1 < end; ++begin) {
      const auto shared = std::mismatch(s[begin].begin(), s[begin].end(), s[end - 1].begin(), s[end - 1].end()).first - s[begin].begin();
      best[end] = std::max(best[end], best[begin] + static_cast<index_t>(end - begin - 1) * shared);
    }
  }
  return best.back();
}

}  // namespace

TEST_CASE("prefix groups: the worked tree", "[reuse][prefix_groups]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "prefix").at("tree");
  const Tokens root(100, 1), x(400, 2), y(50, 3);
  // x has three leaves, y two; z ends at the root.
  const std::vector<Tokens> all{joined({root, y, {8}}), joined({root, x, {5}}), root, joined({root, x, {6}}), joined({root, y, {9}}), joined({root, x, {7}})};
  PrefixGroups g;
  REQUIRE(g.run(spans(all)) == Status::ok);
  CHECK(g.saved() == o.at("best_single_level_saving").get<index_t>());
  CHECK(g.ideal() == o.at("ideal_multi_level_saving").get<index_t>());
  REQUIRE(g.groups().size() == 3);
  std::multiset<std::pair<index_t, index_t>> sizes;
  for (const auto& group : g.groups()) sizes.insert({group.count, group.tokens});
  CHECK(sizes == std::multiset<std::pair<index_t, index_t>>{{1, 0}, {2, 150}, {3, 500}});
}

TEST_CASE("prefix groups: members share what is said, and no single depth saves more", "[reuse][prefix_groups]") {
  std::mt19937 random(6);
  for (int round = 0; round < 300; ++round) {
    std::vector<Tokens> all(random() % 12);
    for (auto& t : all) {
      t.resize(random() % 8);
      for (auto& v : t) v = static_cast<std::int32_t>(random() % 2);
    }
    PrefixGroups g;
    REQUIRE(g.run(spans(all)) == Status::ok);
    std::vector<int> seen(all.size(), 0);
    index_t saved = 0;
    for (const auto& group : g.groups()) {
      const Tokens& first = all[static_cast<std::size_t>(g.order()[static_cast<std::size_t>(group.first)])];
      for (index_t i = group.first; i < group.first + group.count; ++i) {
        const auto s = static_cast<std::size_t>(g.order()[static_cast<std::size_t>(i)]);
        ++seen[s];
        REQUIRE(static_cast<index_t>(all[s].size()) >= group.tokens);
        CHECK(std::equal(first.begin(), first.begin() + group.tokens, all[s].begin()));
      }
      saved += (group.count - 1) * group.tokens;
    }
    for (const int n : seen) CHECK(n == 1);
    CHECK(saved == g.saved());
    CHECK(saved <= most_saving(all));
    for (std::size_t depth = 0; depth < 8; ++depth) CHECK(saved >= cut_saving(all, depth));
    CHECK(g.ideal() >= saved);
  }
}

TEST_CASE("prefix groups: long answers first, chains without end, no memory", "[reuse][prefix_groups]") {
  const std::vector<Tokens> all{{1, 1, 1, 1}, {1, 1, 1, 2}, {7, 7}};
  PrefixGroups g;
  REQUIRE(g.run(spans(all)) == Status::ok);
  REQUIRE(g.groups().size() == 2);
  const std::vector<index_t> generated{1, 1, 100};
  g.by_decoding(spans(all), generated);
  CHECK(g.groups()[0].count == 1);
  g.by_decoding(spans(all), std::vector<index_t>{100, 1, 0});
  CHECK(g.groups()[0].count == 2);

  std::vector<Tokens> chain;
  for (std::size_t n = 1; n < 3000; ++n) chain.emplace_back(n, 1);
  REQUIRE(g.run(spans(chain)) == Status::ok);
  CHECK(g.saved() > 0);
  REQUIRE(g.run({}) == Status::ok);
  CHECK(g.groups().empty());
  test::CountingMemory none;
  none.refuse_from = 1;
  PrefixGroups poor(none);
  CHECK(poor.run(spans(all)) == Status::out_of_memory);
  CHECK(poor.groups().empty());
  CHECK(poor.order().empty());
}
