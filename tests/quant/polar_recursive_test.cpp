#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/polar_recursive.hpp>

#include <quant/codec_page.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::PolarTree;
using quant::PolarRecursive;

namespace {

using Page = test::CodecPage<PolarTree>;
constexpr double pi = std::numbers::pi;

double square_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return sum / static_cast<double>(a.size());
}

/// Code k of a level of a slot, read bit by bit.
int code_at(const Page& p, index_t slot, index_t level, index_t k) {
  index_t at = slot * p.codec.row_bytes(p.dim);
  for (index_t l = 1; l < level; ++l) at += p.codec.level_bytes(l, p.dim);
  const int bits = p.codec.bits_of(level);
  int code = 0;
  for (int b = 0; b < bits; ++b) {
    const index_t bit = k * bits + b;
    code |= (static_cast<int>(p.bytes[at + bit / 8]) >> (bit % 8) & 1) << b;
  }
  return code;
}

}  // namespace

TEST_CASE("polar_recursive: angles of all levels and the length are the worked example's", "[quant][polar_recursive][oracle]") {
  const auto o = test::load_oracle("quantization.json", "N1_polar_recursive");
  const auto x = test::floats(o.at("x")), want = test::floats(o.at("angles_per_level"));
  double angle[7];
  REQUIRE(prim::polar_tree(x.data(), 3, angle) == Approx(o.at("radius").get<double>()).epsilon(1e-7));
  for (std::size_t i = 0; i < 7; ++i) REQUIRE(angle[i] == Approx(static_cast<double>(want[i])).epsilon(1e-6));
  // The codes are the nearest of each level's, and what they decode to is their product.
  Page page(PolarTree::of(3, 4, 2), x, 8);
  REQUIRE(page.half_at(page.codec.code_bytes(8)) == Approx(o.at("radius").get<double>()).epsilon(5e-4));
  double theta[3][4];
  const double* next = angle;
  for (index_t l = 1; l <= 3; ++l)
    for (index_t k = 0; k < 8 >> l; ++k, ++next) {
      const int code = code_at(page, 0, l, k), codes = 1 << page.codec.bits_of(l);
      const auto stands = [&](int c) { return l == 1 ? (c + 0.5) * 2 * pi / codes : static_cast<double>(page.codec.angle_of(l, c)); };
      for (int c = 0; c < codes; ++c) REQUIRE(std::fabs(stands(code) - *next) <= std::fabs(stands(c) - *next) + 1e-9);
      theta[l - 1][k] = stands(code);
    }
  const auto back = page.decoded();
  for (index_t c = 0; c < 8; ++c) {
    const auto part = [&](index_t l) { return (c >> l & 1) == 0 ? std::cos(theta[l][c >> (l + 1)]) : std::sin(theta[l][c >> (l + 1)]); };
    const double v = static_cast<double>(page.half_at(page.codec.code_bytes(8))) * part(2) * part(1) * part(0);
    REQUIRE(back[static_cast<std::size_t>(c)] == Approx(v).margin(1e-6));
  }
}

TEST_CASE("polar_recursive: levels are those of least error for the angles of random vectors", "[quant][polar_recursive]") {
  const PolarTree tree = PolarTree::of(5, 4, 2);
  const auto x = test::normal_rows(4096, 32, 5);
  std::vector<std::vector<double>> angles(6);
  for (index_t r = 0; r < 4096; ++r) {
    double a[31];
    prim::polar_tree(x.data() + r * 32, 5, a);
    const double* at = a;
    for (index_t l = 1; l <= 5; ++l)
      for (index_t k = 0; k < 32 >> l; ++k) angles[static_cast<std::size_t>(l)].push_back(*at++);
  }
  for (index_t l = 2; l <= 5; ++l) {
    // A fixed point of Lloyd's iteration: every level is the mean of what is nearest to it.
    double sum[4] = {}, many[4] = {};
    for (const double a : angles[static_cast<std::size_t>(l)]) {
      int best = 0;
      for (int c = 1; c < 4; ++c)
        if (std::fabs(static_cast<double>(tree.angle_of(l, c)) - a) < std::fabs(static_cast<double>(tree.angle_of(l, best)) - a)) best = c;
      sum[best] += a, many[best] += 1;
    }
    for (int c = 0; c < 4; ++c) REQUIRE(sum[c] / many[c] == Approx(static_cast<double>(tree.angle_of(l, c))).margin(0.01));
    REQUIRE(static_cast<double>(tree.angle_of(l, 0) + tree.angle_of(l, 3)) == Approx(pi / 2));
  }
}

TEST_CASE("polar_recursive: attention by blocks equals attention over what codes decode to", "[quant][polar_recursive]") {
  const index_t dim = GENERATE(32, 64, 80, 96, 112, 128, 256), levels = GENERATE(3, 4, 5);
  const int first = GENERATE(1, 3, 4, 6), bits = GENERATE(1, 2, 3);
  const PolarTree tree = PolarTree::of(levels, first, bits);
  if (!tree.valid(dim)) return;
  CAPTURE(dim, levels, first, bits);
  Page page(tree, test::normal_rows(37, dim, 3), dim);
  REQUIRE(page.repaired == 0);
  test::require_folds(page);
  test::require_same_alone(page);
}

TEST_CASE("polar_recursive: more bits never err more, and four bits a number err as they should", "[quant][polar_recursive]") {
  const auto x = test::normal_rows(2000, 128, 9);
  const auto error = [&](index_t levels, int first, int bits) { return square_error(x, Page(PolarTree::of(levels, first, bits), x, 128).decoded()); };
  REQUIRE(error(4, 5, 2) < error(4, 4, 2));
  REQUIRE(error(4, 4, 2) < error(4, 3, 2));
  REQUIRE(error(4, 4, 3) < error(4, 4, 2));
  REQUIRE(error(4, 4, 2) < error(4, 4, 1));
  REQUIRE(error(4, 4, 2) < error(5, 4, 2));  // one more level of angles in the place of lengths
  // A reference in double: the same codes by search among all angles.
  double sum = 0;
  const PolarTree tree = PolarTree::of(4, 4, 2);
  for (index_t b = 0; b < 2000; ++b) {
    const float* v = x.data() + 16 * b;
    double a[15], w[2][16] = {{prim::polar_tree(v, 4, a)}};
    int from = 0;
    for (index_t l = 4, at = 14; l >= 1; --l, at -= 16 >> l) {
      for (index_t k = 0; k < 16 >> l; ++k) {
        const double t = a[at + k];
        double near = 9;
        const int codes = l == 1 ? 16 : 4;
        for (int c = 0; c < codes; ++c) {
          const double s = l == 1 ? (c + 0.5) * pi / 8 : static_cast<double>(tree.angle_of(l, c));
          if (std::fabs(s - t) < std::fabs(near - t)) near = s;
        }
        w[1 - from][2 * k] = w[from][k] * std::cos(near), w[1 - from][2 * k + 1] = w[from][k] * std::sin(near);
      }
      from = 1 - from;
    }
    for (int c = 0; c < 16; ++c) sum += std::pow(w[from][c] - static_cast<double>(v[c]), 2) / 32000;
  }
  REQUIRE(square_error({x.begin(), x.begin() + 32000}, Page(tree, {x.begin(), x.begin() + 32000}, 128).decoded()) == Approx(sum).epsilon(1e-3));
}

TEST_CASE("polar_recursive: every half number, zeros and numbers that are none", "[quant][polar_recursive]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const PolarTree tree = PolarTree::of(3, 4, 2);
  Page zeros(tree, std::vector<float>(16, 0.0f), 8);
  REQUIRE(zeros.repaired == 0);
  for (const float x : zeros.decoded()) REQUIRE(x == 0.0f);
  Page bad(tree, {1, nan, -2, inf, 3, -inf, 0, 0.5f}, 8), good(tree, {1, 0, -2, 3, 3, -3, 0, 0.5f}, 8);
  REQUIRE(bad.repaired == 3);
  REQUIRE(good.repaired == 0);
  REQUIRE(bad.decoded() == good.decoded());
  REQUIRE(Page(tree, std::vector<float>(8, 6e4f), 8).repaired == 1);
  Page halves(PolarTree::of(4, 4, 2), test::all_halves(64), 64);
  for (const float x : halves.decoded()) REQUIRE(std::isfinite(x));
  // Each alone: its angle and its length are within what they are stored with.
  std::vector<float> alone;
  for (std::uint32_t h = 0; h < 65536; ++h) {
    const float v = kvcondense::detail::half_value(static_cast<std::uint16_t>(h));
    for (int c = 0; c < 8; ++c) alone.push_back(c == static_cast<int>(h % 8) && std::isfinite(v) ? v : 0.0f);
  }
  Page single(tree, alone, 8);
  REQUIRE(single.repaired == 0);
  const auto back = single.decoded();
  for (std::size_t r = 0; r < 65536; ++r) {
    double length = 0, want = 0;
    for (std::size_t c = 0; c < 8; ++c) length += std::pow(static_cast<double>(back[8 * r + c]), 2), want += std::pow(static_cast<double>(alone[8 * r + c]), 2);
    REQUIRE(std::sqrt(length) == Approx(std::sqrt(want)).epsilon(1e-3).margin(1e-7));
  }
}

TEST_CASE("polar_recursive: slots move", "[quant][polar_recursive]") {
  Page a(PolarTree::of(4, 4, 2), test::normal_rows(5, 80, 1), 80), b(PolarTree::of(4, 4, 2), test::normal_rows(7, 80, 2), 80);
  Page::Codec::move(a.codec, b.span(), 6, a.span(), 2);
  REQUIRE(b.decoded(6, 1) == a.decoded(2, 1));
  REQUIRE(b.bytes.ok());
}

TEST_CASE("polar_recursive: bits per number are the published ones, settings that fit nothing are refused", "[quant][polar_recursive][oracle]") {
  const auto z = test::load_oracle("quantization.json", "Z_effective_bits");
  const CacheShape shape{.head_dim = 128};
  REQUIRE(test::bits_per_number(PolarRecursive{}.key_codec(), 128) ==
          z.at("PolarQuant recursive 4 levels 4,2,2,2 bits, fp16 radius, block16").get<double>());
  REQUIRE(PolarRecursive{}.validate(shape) == Status::ok);
  REQUIRE(PolarRecursive{.levels = 2}.validate(shape) == Status::invalid_argument);
  REQUIRE(PolarRecursive{.levels = 6}.validate(shape) == Status::invalid_argument);
  REQUIRE(PolarRecursive{.levels = 5}.validate({.head_dim = 80}) == Status::invalid_argument);
  REQUIRE(PolarRecursive{.levels = 4}.validate({.head_dim = 80}) == Status::ok);
  REQUIRE(PolarRecursive{.first_bits = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(PolarRecursive{.first_bits = 7}.validate(shape) == Status::invalid_argument);
  REQUIRE(PolarRecursive{.bits = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(PolarRecursive{.bits = 4}.validate(shape) == Status::invalid_argument);
  REQUIRE(PolarRecursive{.residual_window = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(PolarRecursive{.sinks = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(PolarTree::of(4, 4, 2).fingerprint() != PolarTree::of(4, 4, 3).fingerprint());
}
