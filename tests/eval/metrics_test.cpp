#include <catch2/catch.hpp>
#include <cmath>
#include <vector>

#include <eval/metrics.hpp>

using namespace eval;

TEST_CASE("kl: equals the sum by hand", "[eval][metrics]") {
  const std::vector<float> full{0.0f, std::log(3.0f)};  // 1/4, 3/4
  const std::vector<float> other{5.0f, 5.0f};           // 1/2, 1/2
  const double want = 0.25 * std::log(0.5) + 0.75 * std::log(1.5);
  REQUIRE(kl_divergence(full, other) == Approx(want).epsilon(1e-6));
}

TEST_CASE("kl: the same logits give exactly 0, shifted ones nearly", "[eval][metrics]") {
  const std::vector<float> a{-3.25f, 0.5f, 11.0f, 2.0f}, b{-2.25f, 1.5f, 12.0f, 3.0f};
  REQUIRE(kl_divergence(a, a) == 0.0);
  REQUIRE(kl_divergence(a, b) < 1e-12);
}

TEST_CASE("text sums: means, agreement and bits of a tiny text", "[eval][metrics]") {
  const std::vector<float> full{0.0f, std::log(3.0f)}, same = full, other{1.0f, 0.0f};
  TextSums first, second;
  first.add(full, same, 1);    // agrees, bits -log2(3/4)
  second.add(full, other, 0);  // does not, bits -log2(e / (e + 1))
  first.add(second);
  const double e = std::exp(1.0), p0 = e / (e + 1), p1 = 1 / (e + 1);
  const double kl = 0.25 * std::log(0.25 / p0) + 0.75 * std::log(0.75 / p1);
  REQUIRE(first.predictions == 2);
  REQUIRE(first.agreement() == 0.5);
  REQUIRE(first.mean_bits() == Approx((-std::log2(0.75) - std::log2(p0)) / 2).epsilon(1e-6));
  REQUIRE(first.mean_kl() == Approx(kl / 2).epsilon(1e-6));
  REQUIRE(first.kl_most == Approx(kl).epsilon(1e-6));
  REQUIRE(TextSums{}.mean_kl() == 0.0);
}

TEST_CASE("error sums: relative Euclidean distance", "[eval][metrics]") {
  ErrorSums sums;
  sums.add(std::vector<float>{3.0f, 0.0f}, std::vector<float>{3.0f, 1.0f});
  sums.add(std::vector<float>{0.0f, 4.0f}, std::vector<float>{2.0f, 4.0f});
  REQUIRE(sums.relative() == Approx(std::sqrt(5.0) / 5.0));
  REQUIRE(ErrorSums{}.relative() == 0.0);
  ErrorSums of_nothing;  // no part of nothing is small
  of_nothing.add(std::vector<float>{0.0f}, std::vector<float>{0.5f});
  REQUIRE(std::isinf(of_nothing.relative()));
}

TEST_CASE("recall sums: depth is where the mention lies in what was read", "[eval][metrics]") {
  RecallSums sums, more;
  sums.add(1000, 1000, true);  // at the very start
  sums.add(751, 1000, false);  // at 249 of 1000
  sums.add(750, 1000, true);   // at 250
  more.add(1, 1000, true);     // just now
  more.add(1, 1, false);
  sums.add(more);
  const std::vector<index_t> asked(sums.deep_asked, sums.deep_asked + RecallSums::quarters),
      right(sums.deep_right, sums.deep_right + RecallSums::quarters);
  REQUIRE(asked == std::vector<index_t>{3, 1, 0, 1});
  REQUIRE(right == std::vector<index_t>{1, 1, 0, 1});
}

TEST_CASE("recall sums: bands end where they say", "[eval][metrics]") {
  RecallSums sums, more;
  for (const index_t d : {1, 255}) sums.add(d, 1000, true);
  for (const index_t d : {256, 511}) sums.add(d, 1000, d == 256);
  more.add(512, 1000, false);
  sums.add(more);
  const std::vector<index_t> asked(sums.asked, sums.asked + RecallSums::bands),
      right(sums.right, sums.right + RecallSums::bands);
  REQUIRE(asked == std::vector<index_t>{2, 2, 1});
  REQUIRE(right == std::vector<index_t>{2, 1, 0});
  REQUIRE(sums.asked_all() == 5);
  REQUIRE(sums.all() == Approx(0.6));
}

TEST_CASE("mass on: the part of a softmax that some rows have", "[eval][metrics]") {
  // Logits 0, ln 2, ln 5 and -inf at a scale of 0.5; rows lie three numbers apart.
  const float keys[] = {0, 9, 9, 2 * std::log(2.0f), 9, 9, 2 * std::log(5.0f), 9, 9, -1e30f, 9, 9};
  const float query[] = {1};
  const auto of = [&](std::vector<index_t> read, index_t count = 4) { return mass_on(query, keys, 3, count, 0.5f, read); };
  REQUIRE(of({0, 1, 2, 3}) == Approx(1));
  REQUIRE(of({0, 2}) == Approx(6.0 / 8));
  REQUIRE(of({1}) == Approx(2.0 / 8));
  REQUIRE(of({0}, 2) == Approx(1.0 / 3));
  REQUIRE(of({3}) == 0);
  REQUIRE(of({}) == 0);
  ReadSums sums{2, 0.5, 1.8};
  REQUIRE(sums.slot_share() == Approx(0.25));
  REQUIRE(sums.mass_share() == Approx(0.9));
  REQUIRE(ReadSums{}.mass_share() == 0);
}
