#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/prim/level_codes.hpp>
#include <kvcondense/quant/level_search.hpp>

#include <support/fill.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

std::vector<std::byte> room(std::size_t{1} << 23);
constexpr float endless = std::numeric_limits<float>::infinity(), none_at_all = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST_CASE("level_search: levels of many normal numbers are Lloyd and Max's", "[quant][level_search][oracle]") {
  std::vector<float> x(200000);
  test::fill_normal(x.data(), x.size(), 3);
  const auto o = test::load_oracle("quantization.json", "M1_lloyd_max_gaussian");
  for (const int bits : {1, 2, 3}) {
    const auto want = test::floats(o.at("bits" + std::to_string(bits)).at("centroids"));
    std::vector<float> level(want.size());
    REQUIRE(quant::fit_levels_1d(x, {}, level, Scratch{room}, 500) == Status::ok);
    for (std::size_t i = 0; i < level.size(); ++i) REQUIRE(level[i] == Approx(want[i]).margin(0.02));
  }
}

TEST_CASE("level_search: a sign of what coarser levels leave costs more than levels of as many bits", "[quant][level_search][oracle]") {
  // Some engines add one bit to an index, which way the number lies from its level, and a gain: the code stays readable without the bit.
  const auto tables = test::load_oracle("quantization.json", "M6_embedded_sign_refinement").at("tables");
  for (int bits = 2; bits <= 4; ++bits) {
    CAPTURE(bits);
    const auto& want = tables.at("total_bits" + std::to_string(bits));
    // Of a normal density, by the levels that rotated rows are coded with: mean |rest| and rest^2.
    const auto rest = [](int b) {
      const auto half = prim::fit_levels(b, 1, true);
      double mass = 0, size = 0, square = 0;
      for (int i = 0; i < 200000; ++i) {
        const double t = (i + 0.5) * 4e-5, f = std::exp(-t * t / 2);
        double nearest = 1e9;
        for (int l = 0; l < 1 << (b - 1); ++l) nearest = std::fmin(nearest, std::fabs(t - static_cast<double>(half[static_cast<std::size_t>(l)])));
        mass += f, size += f * nearest, square += f * nearest * nearest;
      }
      return std::pair{size / mass, square / mass};
    };
    const auto [size, square] = rest(bits - 1);
    const double root = std::sqrt(square), same_bits = rest(bits).second;
    const auto with = [s = size, q = square](double gain) { return q - 2 * gain * s + gain * gain; };
    REQUIRE(root == Approx(want.at("rms_residual").get<double>()).epsilon(1e-3));
    REQUIRE(size == Approx(want.at("mean_abs_residual").get<double>()).epsilon(1e-3));
    REQUIRE(with(root) == Approx(want.at("mse_with_rms_gain").get<double>()).epsilon(2e-3));
    REQUIRE(with(size) == Approx(want.at("mse_with_mean_abs_gain").get<double>()).epsilon(2e-3));
    REQUIRE(same_bits == Approx(want.at("mse_lloyd_max_same_bits").get<double>()).epsilon(1e-3));
    REQUIRE(same_bits < with(size));
  }
}

TEST_CASE("level_search: weights count as that many numbers", "[quant][level_search]") {
  std::vector<float> x, w, many;
  for (int i = 0; i < 60; ++i) {
    x.push_back(std::sin(static_cast<float>(i) * 1.7f)), w.push_back(static_cast<float>(i % 4));
    for (int k = 0; k < i % 4; ++k) many.push_back(x.back());
  }
  std::vector<float> a(5), b(5), c(5);
  REQUIRE(quant::fit_levels_1d(x, w, a, Scratch{room}) == Status::ok);
  REQUIRE(quant::fit_levels_1d(many, {}, b, Scratch{room}) == Status::ok);
  REQUIRE(quant::fit_levels_1d(x, {}, c, Scratch{room}) == Status::ok);
  for (std::size_t i = 0; i < 5; ++i) REQUIRE(a[i] == Approx(b[i]).margin(1e-6));
  REQUIRE(a != c);
}

TEST_CASE("level_search: every level is the mean of what is nearest to it", "[quant][level_search]") {
  std::vector<float> x(5000);
  test::fill_uniform(x.data(), x.size(), 3);
  for (float& v : x) v = v * v;
  std::vector<float> level(8);
  REQUIRE(quant::fit_levels_1d(x, {}, level, Scratch{room}, 5000) == Status::ok);
  for (std::size_t i = 0; i < 8; ++i) {
    double sum = 0, many = 0;
    for (const float v : x) {
      std::size_t best = 0;
      for (std::size_t k = 1; k < 8; ++k)
        if (std::fabs(v - level[k]) < std::fabs(v - level[best])) best = k;
      if (best == i) sum += static_cast<double>(v), many += 1;
    }
    REQUIRE(sum / many == Approx(static_cast<double>(level[i])).margin(1e-3));
  }
}

TEST_CASE("level_search: few numbers, equal ones and those that are none still give levels that ascend", "[quant][level_search]") {
  std::vector<float> level(4);
  for (const auto& x : {std::vector<float>{0.5f}, std::vector<float>(20, 0.0f), std::vector<float>{none_at_all, 1, endless, 2, -endless}}) {
    REQUIRE(quant::fit_levels_1d(x, {}, level, Scratch{room}) == Status::ok);
    for (std::size_t i = 0; i < 4; ++i) {
      REQUIRE(std::isfinite(level[i]));
      if (i > 0) REQUIRE(level[i] > level[i - 1]);
    }
  }
  const std::vector<float> none = {none_at_all}, one = {1.0f}, two = {1.0f, 2.0f}, bad = {-1.0f}, zero = {0.0f};
  const std::vector<float> before = level;
  REQUIRE(quant::fit_levels_1d(none, {}, level, Scratch{room}) == Status::invalid_argument);
  REQUIRE(quant::fit_levels_1d({}, {}, level, Scratch{room}) == Status::invalid_argument);
  REQUIRE(quant::fit_levels_1d(one, bad, level, Scratch{room}) == Status::invalid_argument);
  REQUIRE(quant::fit_levels_1d(one, zero, level, Scratch{room}) == Status::invalid_argument);
  REQUIRE(quant::fit_levels_1d(one, two, level, Scratch{room}) == Status::shape_mismatch);
  REQUIRE(quant::fit_levels_1d(two, {}, std::span<float>(level).first(1), Scratch{room}) == Status::invalid_argument);
  Workspace small;
  REQUIRE(small.reserve(quant::fit_levels_bytes(2, 4)) == Status::ok);
  std::vector<std::byte> less(8);
  REQUIRE(quant::fit_levels_1d(two, {}, level, Scratch{less}) == Status::workspace_too_small);
  level = before;
  REQUIRE(quant::fit_levels_1d(two, {}, level, Scratch{small.bytes()}) == Status::ok);
}

TEST_CASE("level_search: thresholds are quantiles of every channel", "[quant][level_search]") {
  std::vector<float> x(101 * 3), lower(3), upper(3);
  for (std::size_t t = 0; t < 101; ++t)
    for (std::size_t c = 0; c < 3; ++c) x[(t * 37 % 101) * 3 + c] = static_cast<float>(t) * static_cast<float>(c + 1);
  const TensorView<const float, 2> rows{x.data(), {101, 3}, {3, 1}};
  REQUIRE(quant::find_thresholds(rows, 0.1, lower, upper, Scratch{room}) == Status::ok);
  for (std::size_t c = 0; c < 3; ++c) {
    REQUIRE(lower[c] == Approx(5.0 * static_cast<double>(c + 1)));
    REQUIRE(upper[c] == Approx(95.0 * static_cast<double>(c + 1)));
  }
  REQUIRE(quant::find_thresholds(rows, 0.0, lower, upper, Scratch{room}) == Status::ok);
  REQUIRE((lower[1] == 0.0f && upper[1] == 200.0f));
  REQUIRE(quant::find_thresholds(rows, 0.05, lower, upper, Scratch{room}) == Status::ok);
  REQUIRE(lower[0] == Approx(2.5));  // between two numbers
  REQUIRE(quant::find_thresholds(rows, 1.0, lower, upper, Scratch{room}) == Status::invalid_argument);
  REQUIRE(quant::find_thresholds(rows, 0.1, std::span<float>(lower).first(2), upper, Scratch{room}) == Status::shape_mismatch);
  x[0] = none_at_all, x[3] = endless;
  REQUIRE(quant::find_thresholds(rows, 0.0, lower, upper, Scratch{room}) == Status::ok);
  REQUIRE(upper[0] == 100.0f);
  for (std::size_t t = 0; t < 101; ++t) x[3 * t + 1] = none_at_all;
  REQUIRE(quant::find_thresholds(rows, 0.0, lower, upper, Scratch{room}) == Status::invalid_argument);
  std::vector<std::byte> less(8);
  REQUIRE(quant::find_thresholds(rows, 0.0, lower, upper, Scratch{less}) == Status::workspace_too_small);
}
