#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/evict/qfilters.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using evict::QFilters;

namespace {

/// The best `count` of `scores`, ascending; ties go to the smaller one.
Ints best(const std::vector<double>& scores, index_t count) {
  Ints order(scores.size());
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return scores[at(a)] > scores[at(b)]; });
  order.resize(at(count));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace

TEST_CASE("qfilters: keys that point against the filter of their head stay", "[evict][qfilters]") {
  // Filters (1, 0) and (0.5, -1). Scores -f.k of head 0: 2, -1, 3, 0; of head 1: -2, -0.5, -0.5, 3.
  const float filters[] = {1.0f, 0.0f, 0.5f, -1.0f};
  const float keys[2][4][2] = {{{-2, 9}, {1, 9}, {-3, 9}, {0, 9}}, {{2, -1}, {-1, -1}, {1, 0}, {0, 3}}};
  auto d = drive({.q_heads = 4, .kv_heads = 2, .head_dim = 2}, QFilters{.keep = 0.5, .query_filters = {filters, 1, 2, 2}});
  d.key = [&](index_t h, index_t t, index_t c) { return keys[h][t][c]; };
  REQUIRE(d.step(4, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held == Rows{{0, 2}, {1, 3}});  // of two that are alike the first
  REQUIRE(d.lane[0] == std::vector<std::vector<float>>{{2.0f, 3.0f}, {-0.5f, 3.0f}});
}

TEST_CASE("qfilters: scores and kept sets are those of the plain formula, in every layer, group and size of a head", "[evict][qfilters]") {
  const index_t dim = GENERATE(3, 64, 80), group = GENERATE(1, 3, 7), layer = GENERATE(0, 2);
  const CacheShape shape{.layers = 3, .q_heads = 2 * group, .kv_heads = 2, .head_dim = dim};
  std::vector<float> filters;
  for (index_t i = 0; i < 3 * 2 * dim; ++i) filters.push_back(static_cast<float>(number(9, 0, i)) - 0.5f);
  const QFilters policy{.keep = 0.3, .recent = 2, .query_filters = {filters.data(), 3, 2, dim}};
  REQUIRE(policy.validate(shape) == Status::ok);
  auto d = drive_noise(shape, policy);
  d.layer = layer;
  REQUIRE(d.step(30, Phase::prefill_chunk) == Status::ok);
  REQUIRE(d.step(20, Phase::prefill_end) == Status::ok);
  for (index_t h = 0; h < 2; ++h) {
    std::vector<double> scores;
    for (index_t t = 0; t < 48; ++t) {
      double sum = 0;
      for (index_t c = 0; c < dim; ++c) sum -= static_cast<double>(filters[at((layer * 2 + h) * dim + c)]) * static_cast<double>(d.key(h, t, c));
      scores.push_back(sum);
    }
    Ints want = best(scores, 13);  // 15 of 50, of which the newest two are two
    for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(d.lane[0][at(h)][i] == Approx(scores[at(want[i])]).margin(1e-5));
    want.insert(want.end(), {48, 49});
    REQUIRE(d.held[at(h)] == want);
  }
  REQUIRE(d.step(1, Phase::decode) == Status::ok);
  REQUIRE_FALSE(d.fired);  // generated tokens stay
}

TEST_CASE("qfilters: a key is read once, when it is new, and a bad one leaves first", "[evict][qfilters]") {
  const float filter[] = {-1.0f};
  auto d = drive({.head_dim = 1}, QFilters{.keep = 0.5, .query_filters = {filter, 1, 1, 1}});
  const float keys[] = {5, std::nanf(""), -9, 4, 7, 6};
  d.key = [&](index_t, index_t t, index_t) { return keys[t]; };
  REQUIRE(d.step(2, Phase::prefill_chunk) == Status::ok);
  d.key = [&](index_t, index_t t, index_t) { return t < 2 ? -1e9f : keys[t]; };
  REQUIRE(d.step(4, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 4, 5});
  REQUIRE(d.nan == 1);
}

TEST_CASE("qfilters: one token, none, and a part that keeps all are no trouble", "[evict][qfilters]") {
  const float filter[] = {1.0f, 2.0f};
  const HeadRows one{filter, 1, 1, 2};
  auto d = drive_noise({.head_dim = 2}, QFilters{.keep = 0.01, .query_filters = one});
  REQUIRE(d.step(0, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0].empty());
  REQUIRE(d.step(1, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0});
  auto all = drive_noise({.head_dim = 2}, QFilters{.keep = 1.0, .query_filters = one});
  REQUIRE(all.step(9, Phase::prefill_end) == Status::ok);
  REQUIRE(all.held[0].size() == 9);
  auto wide = drive_noise({.head_dim = 2}, QFilters{.keep = 0.1, .recent = 50, .query_filters = one});
  REQUIRE(wide.step(9, Phase::prefill_end) == Status::ok);
  REQUIRE(wide.held[0].size() == 9);  // what is protected stays whatever the budget
  auto none = drive({.head_dim = 2}, QFilters{.query_filters = one});
  REQUIRE(none.step(3, Phase::prefill_end) == Status::missing_input);
}

TEST_CASE("qfilters: keeps the promises of a pipeline", "[evict][qfilters]") {
  std::vector<float> filters;
  for (index_t i = 0; i < 4 * 4; ++i) filters.insert(filters.end(), {0.3f, -0.7f, 0.4f});  // heads alike, as the promise has it
  for (std::uint32_t seed = 0; seed < 16; ++seed) {
    const HeadRows rows{filters.data(), 4, 1 + static_cast<index_t>(seed % 4), 3};
    check_promises_once(QFilters{.keep = 0.08, .recent = 4, .query_filters = rows}, QFilters{.keep = 1.0, .recent = 4, .query_filters = rows}, {}, seed, 1 + seed % 3);
  }
}

TEST_CASE("qfilters: filters of another model, raw keys and parts out of range are refused", "[evict][qfilters]") {
  const std::vector<float> x(2 * 2 * 8);
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 8};
  const QFilters good{.query_filters = {x.data(), 2, 2, 8}};
  const auto status = [&](auto change) {
    QFilters p = good;
    change(p);
    return p.validate(shape);
  };
  REQUIRE(good.validate(shape) == Status::ok);
  REQUIRE(good.missing() == nullptr);
  REQUIRE(std::string(QFilters{}.missing()) == "query_filters");
  REQUIRE(status([](auto& p) { p.query_filters = {}; }) == Status::missing_input);
  REQUIRE(status([](auto& p) { p.query_filters.layers = 1; }) == Status::shape_mismatch);
  REQUIRE(status([](auto& p) { p.query_filters.heads = 4; }) == Status::shape_mismatch);
  REQUIRE(status([](auto& p) { p.query_filters.numbers = 4; }) == Status::shape_mismatch);
  REQUIRE(status([](auto& p) { p.keep = 0.0; }) == Status::invalid_argument);
  REQUIRE(status([](auto& p) { p.keep = 1.1; }) == Status::invalid_argument);
  REQUIRE(status([](auto& p) { p.keep = std::nan(""); }) == Status::invalid_argument);
  REQUIRE(status([](auto& p) { p.recent = -1; }) == Status::invalid_argument);
  REQUIRE(evict::reads_rotated_keys(good.pipeline().source));
}
