#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

std::vector<std::int32_t> run(std::vector<float> scores, index_t first, index_t best, index_t total, index_t* nan = nullptr) {
  const auto n = static_cast<index_t>(scores.size());
  const index_t offset[] = {0, n};
  test::Guarded<std::int32_t> slots(scores.size());
  index_t count = -1, bad = 0;
  Context<Cpu> ctx;
  REQUIRE(prim::TopThenNewest<Cpu>::run(ctx, {scores.data(), offset, 1}, first, best, &total, {slots.data(), offset, 1}, &count, &bad) == Status::ok);
  REQUIRE(slots.ok());
  if (nan != nullptr) *nan = bad;
  return {slots.data(), slots.data() + count};
}

}  // namespace

TEST_CASE("top_then_newest: first, best and newest equal sets in double", "[prim][top_then_newest]") {
  std::mt19937 random(1);
  for (int round = 0; round < 400; ++round) {
    const auto draw = [&](index_t lo, index_t hi) { return std::uniform_int_distribution<index_t>(lo, hi)(random); };
    const index_t n = draw(0, 40), first = draw(0, 5), best = draw(0, 12), total = draw(0, 44);
    std::vector<float> s(static_cast<std::size_t>(n));
    for (float& x : s) x = static_cast<float>(draw(0, 6));  // many ties
    std::vector<index_t> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return s[static_cast<std::size_t>(a)] > s[static_cast<std::size_t>(b)]; });
    std::vector<bool> keep(static_cast<std::size_t>(n), total >= n);
    for (index_t i = 0; i < std::min(first, n); ++i) keep[static_cast<std::size_t>(i)] = true;
    for (index_t i = 0; i < std::min(best, n); ++i) keep[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])] = true;
    auto kept = std::count(keep.begin(), keep.end(), true);
    for (index_t i = n - 1; i >= 0 && kept < total; --i)
      if (!keep[static_cast<std::size_t>(i)]) keep[static_cast<std::size_t>(i)] = true, ++kept;
    std::vector<std::int32_t> want;
    for (index_t i = 0; i < n; ++i)
      if (keep[static_cast<std::size_t>(i)]) want.push_back(static_cast<std::int32_t>(i));
    REQUIRE(run(s, first, best, total) == want);
  }
}

TEST_CASE("top_then_newest: what is no number is not among the best, and is counted", "[prim][top_then_newest]") {
  index_t nan = 0;
  REQUIRE(run({NAN, 1, -INFINITY, NAN, 2, 0}, 0, 3, 3, &nan) == std::vector<std::int32_t>{1, 4, 5});
  REQUIRE(nan == 2);
  const index_t offset[] = {0, 0};
  Context<Cpu> ctx;
  index_t total = 0, count = 0;
  REQUIRE(prim::TopThenNewest<Cpu>::run(ctx, {nullptr, offset, 1}, -1, 0, &total, {nullptr, offset, 1}, &count) == Status::invalid_argument);
}

TEST_CASE("count_above: places between the ends that reach the threshold", "[prim][count_above]") {
  const std::vector<float> s{5, NAN, 1, 2, 2, -INFINITY, 9, 9};
  const index_t offset[] = {0, 6, 8, 8};
  const prim::Ends skip[] = {{1, 1}, {0, 5}, {3, 3}};
  index_t count[3];
  Context<Cpu> ctx;
  REQUIRE(prim::CountAbove<Cpu>::run(ctx, {s.data(), offset, 3}, skip, 2.0f, count) == Status::ok);
  REQUIRE((count[0] == 2 && count[1] == 0 && count[2] == 0));
  REQUIRE(prim::CountAbove<Cpu>::run(ctx, {s.data(), offset, 3}, nullptr, 2.0f, count) == Status::ok);
  REQUIRE((count[0] == 3 && count[1] == 2 && count[2] == 0));
}

TEST_CASE("count_above: the least positive number as threshold counts all that are positive", "[prim][count_above]") {
  const float marks[] = {1, 0, 2, -1, std::nanf(""), 0.5f, 1, 1};
  const index_t offset[] = {0, 6, 8};
  index_t count[2] = {};
  constexpr float least = std::numeric_limits<float>::denorm_min();
  Context<Cpu> ctx;
  REQUIRE(prim::CountAbove<Cpu>::run(ctx, {marks, offset, 2}, nullptr, least, count) == Status::ok);
  REQUIRE((count[0] == 3 && count[1] == 2));
  const prim::Ends ends[] = {{1, 1}, {9, 9}};
  REQUIRE(prim::CountAbove<Cpu>::run(ctx, {marks, offset, 2}, ends, least, count) == Status::ok);
  REQUIRE((count[0] == 1 && count[1] == 0));
}

TEST_CASE("token_numbers: the newest slots get what came with the tokens", "[prim][token_numbers]") {
  const std::vector<float> x{1, NAN, 3, 4, 5, NAN};
  const index_t offset[] = {0, 5, 7};
  const auto write = [&](TensorView<const float, 2> numbers, index_t back, prim::MissingNumber missing, float scale = 1.0f) {
    std::vector<float> out(7, -1);
    Context<Cpu> ctx;
    REQUIRE(prim::TokenNumbers<Cpu>::write(ctx, numbers, scale, back, missing, {out.data(), offset, 2}) == Status::ok);
    for (float& o : out) o = std::isnan(o) ? 99 : o;
    return out;
  };
  using M = prim::MissingNumber;
  REQUIRE(write(dense_view(x.data(), 2, 3), 0, M::stays) == std::vector<float>{-1, -1, 1, 99, 3, 5, 99});
  REQUIRE(write(dense_view(x.data(), 2, 3), 1, M::stays) == std::vector<float>{-1, 1, 99, 3, -1, 99, -1});
  REQUIRE(write(dense_view(x.data(), 1, 3), 0, M::largest) == std::vector<float>{-1, -1, 1, 3, 3, 3, 3});
  REQUIRE(write(dense_view(x.data(), 2, 3), 1, M::stays, -1.0f) == std::vector<float>{-1, -1, 99, -3, -1, 99, -1});
  REQUIRE(write(dense_view(x.data(), 1, 3), 0, M::largest, -2.0f) == std::vector<float>{-1, -1, -2, -6, -6, -6, -6});
  std::vector<float> all(2, NAN);
  REQUIRE(write(dense_view(static_cast<const float*>(all.data()), 1, 2), 0, M::largest) == std::vector<float>{-1, -1, -1, 0, 0, 0, 0});
  Context<Cpu> ctx;
  std::vector<float> out(7);
  REQUIRE(prim::TokenNumbers<Cpu>::write(ctx, dense_view(x.data(), 3, 2), 1.0f, 0, M::stays, {out.data(), offset, 2}) == Status::shape_mismatch);
}

TEST_CASE("token_numbers: classes reach all heads, and new slots carry on what the one before them has", "[prim][token_numbers]") {
  const TokenClass classes[] = {TokenClass::special, TokenClass::plain, TokenClass::punctuation};
  const index_t offset[] = {0, 5, 7, 7};
  std::vector<float> out{9, 8, 7, 6, 5, 4, 3};
  Context<Cpu> ctx;
  REQUIRE(prim::TokenNumbers<Cpu>::write(ctx, classes, {out.data(), offset, 3}) == Status::ok);
  REQUIRE(out == std::vector<float>{9, 8, 2, 0, 1, 0, 1});
  out = {9, 8, 7, 6, 5, 4, 3};
  REQUIRE(prim::TokenNumbers<Cpu>::extend(ctx, 0, {out.data(), offset, 3}) == Status::ok);
  REQUIRE(out == std::vector<float>{9, 8, 7, 6, 5, 4, 3});
  REQUIRE(prim::TokenNumbers<Cpu>::extend(ctx, 2, {out.data(), offset, 3}) == Status::ok);
  REQUIRE(out == std::vector<float>{9, 8, 7, 7, 7, 4, 3});  // the second head has nothing before its two
}
