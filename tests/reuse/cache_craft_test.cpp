#include <algorithm>
#include <catch2/catch.hpp>
#include <cost/near.hpp>
#include <kvcondense/reuse/cache_craft.hpp>
#include <limits>
#include <numeric>
#include <random>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using reuse::CacheCraft;
using reuse::ChunkId;
using reuse::ChunkVariant;
using test::near;
using Ids = std::vector<ChunkId>;
using Numbers = std::vector<double>;

namespace {

nlohmann::json oracle() { return test::load_oracle("retrieval_reuse_storage.json", "cache_craft"); }

}  // namespace

TEST_CASE("cache craft: the worked chunk", "[reuse][cache_craft]") {
  const auto o = oracle();
  const auto a = o.at("inter_per_layer").at("A").get<Numbers>(), b = o.at("inter_per_layer").at("B").get<Numbers>();
  const auto intra = o.at("intra_per_layer").get<Numbers>();
  const index_t size = o.at("sizes").at("C");
  const std::vector<index_t> sizes{o.at("sizes").at("A"), o.at("sizes").at("B")};
  Numbers outside, inside;
  for (std::size_t l = 0; l < 2; ++l) {
    outside.push_back(CacheCraft::outside(Numbers{a[l], b[l]}, sizes, size));
    inside.push_back(CacheCraft::inside(intra[l], size));
    CHECK(outside[l] == near(o.at("a_layers")[l]));
    CHECK(inside[l] == near(o.at("b_layers")[l]));
  }
  const double context = CacheCraft::context(outside, inside);
  CHECK(context == near(o.at("CCI")));
  const Numbers inter{a[0] + a[1], b[0] + b[1]};
  const Ids before{'A', 'B'}, now{'B', 'D'};
  const ChunkVariant v{before, inter, context};
  CHECK(CacheCraft::overlap(v, now) == near(o.at("beta")));
  CHECK(CacheCraft::disorder(before, now) == 0.0);
  const CacheCraft craft{.alpha = o.at("alpha")};
  CHECK(craft.fraction(v, now) == near(o.at("CFO")));
  const index_t n = CacheCraft::tokens(craft.fraction(v, now), size);
  CHECK(n == o.at("recompute_tokens").get<index_t>());
  std::vector<index_t> picked(static_cast<std::size_t>(n));
  REQUIRE(CacheCraft::pick(o.at("per_token_inter").get<Numbers>(), picked) == Status::ok);
  CHECK(picked == o.at("recompute_token_ids").get<std::vector<index_t>>());

  const auto ids = [](const nlohmann::json& j) {
    Ids r;
    for (const auto& s : j) r.push_back(s.get<std::string>()[0]);
    return r;
  };
  const auto& k = o.at("kendall_example");
  CHECK(CacheCraft::disorder(ids(k.at("old")), ids(k.at("new"))) == near(k.at("gamma")));
}

TEST_CASE("cache craft: the same prefix needs nothing, another one as much as the chunk looked back", "[reuse][cache_craft]") {
  const Ids before{1, 2, 3}, reversed{3, 2, 1}, other{7, 8};
  const Numbers inter{1, 2, 1};
  const ChunkVariant v{before, inter, 0.8};
  const CacheCraft craft;
  CHECK(craft.fraction(v, before) == 0.0);
  CHECK(craft.fraction(v, reversed) == Approx(0.8));
  CHECK(craft.fraction(v, other) == Approx(0.8));
  CHECK(craft.fraction(v, Ids{1, 2}) == Approx(0.8 * 0.25));
  CHECK(CacheCraft{.alpha = 0.5}.fraction(v, other) == Approx(0.4));
  CHECK(CacheCraft{.alpha = 5}.fraction(v, other) == 1.0);
  CHECK(CacheCraft::tokens(0.0, 10) == 0);
  CHECK(CacheCraft::tokens(0.3, 10) == 3);
  CHECK(CacheCraft::tokens(0.31, 10) == 4);
  CHECK(CacheCraft::tokens(1.0, 10) == 10);

  // Divisions by nothing.
  CHECK(CacheCraft::context(Numbers{0.1}, Numbers{0}) == 1.0);
  CHECK(CacheCraft::context(Numbers{0}, Numbers{0}) == 0.5);
  CHECK(CacheCraft::context(Numbers{}, Numbers{}) == 0.5);
  CHECK(CacheCraft::overlap({before, Numbers{0, 0, 0}, 0.5}, other) == 1.0);
  CHECK(CacheCraft::overlap({{}, {}, 0.5}, other) == 1.0);
}

TEST_CASE("cache craft: the best of the stored variants", "[reuse][cache_craft]") {
  const Ids first{1, 2}, second{2, 3}, now{2, 3, 4};
  const Numbers inter{1, 1};
  const std::vector<ChunkVariant> variants{{first, inter, 0.6}, {second, inter, 0.9}};
  const CacheCraft craft;
  index_t best = 9;
  double part = 0;
  REQUIRE(craft.choose(variants, now, best, part) == Status::ok);
  CHECK(best == 1);
  CHECK(part == 0.0);
  REQUIRE(craft.choose(variants, Ids{1}, best, part) == Status::ok);
  CHECK(best == 0);
  CHECK(part == Approx(0.3));
  REQUIRE(craft.choose({}, now, best, part) == Status::ok);
  CHECK(best == -1);
  CHECK(part == 1.0);
  const Numbers one{1};
  CHECK(craft.choose(std::vector<ChunkVariant>{{first, one, 0.6}}, now, best, part) == Status::shape_mismatch);
  const Ids twice{1, 1};
  CHECK(craft.choose(std::vector<ChunkVariant>{{twice, inter, 0.6}}, now, best, part) == Status::invalid_argument);
  CHECK(craft.choose(variants, twice, best, part) == Status::invalid_argument);
  CHECK(CacheCraft{.alpha = -1}.validate() == Status::invalid_argument);
  CHECK(CacheCraft{.alpha = std::numeric_limits<double>::quiet_NaN()}.validate() == Status::invalid_argument);
  CHECK(craft.validate() == Status::ok);
}

TEST_CASE("cache craft: tokens that look back most, as a sort would have it", "[reuse][cache_craft]") {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    Numbers inter(random() % 20);
    for (double& x : inter) x = random() % 11 == 0 ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(random() % 5);
    std::vector<index_t> picked(inter.empty() ? 0 : random() % (inter.size() + 1)), order(inter.size());
    std::iota(order.begin(), order.end(), 0);
    const auto key = [&](index_t i) { const double x = inter[static_cast<std::size_t>(i)]; return x != x ? HUGE_VAL : x; };
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return key(a) > key(b); });
    order.resize(picked.size());
    std::sort(order.begin(), order.end());
    REQUIRE(CacheCraft::pick(inter, picked) == Status::ok);
    CHECK(picked == order);
  }
  std::vector<index_t> many(3);
  CHECK(CacheCraft::pick(Numbers{1, 2}, many) == Status::shape_mismatch);
}

TEST_CASE("cache craft: shares of attention from partial lse", "[reuse][cache_craft]") {
  const double a = std::log(1.0 + 2.0), b = std::log(3.0), all = std::log(6.0);
  CHECK(reuse::attention_share(a, all) == Approx(0.5));
  CHECK(reuse::attention_share(b, all) == Approx(0.5));
  CHECK(reuse::attention_share(-std::numeric_limits<double>::infinity(), all) == 0.0);
}
