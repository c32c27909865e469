#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/complex_vq.hpp>
#include <kvcondense/quant/complex_book.hpp>

#include <quant/codec_page.hpp>

using namespace kvcondense;
using prim::ComplexVq;
using prim::RopePairing;

namespace {

using Page = test::CodecPage<ComplexVq>;

double mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return sum / static_cast<double>(a.size());
}

}  // namespace

TEST_CASE("complex_book: a fitted book beats a random one, more stages and words err less", "[quant][complex_book]") {
  const index_t dim = 16, tokens = 600;
  // Rows around a few directions.
  auto rows = test::normal_rows(tokens, dim, 5);
  const auto centers = test::normal_rows(7, dim, 6);
  for (index_t t = 0; t < tokens; ++t)
    for (index_t c = 0; c < dim; ++c)
      rows[static_cast<std::size_t>(t * dim + c)] = 0.4f * rows[static_cast<std::size_t>(t * dim + c)] + 2.0f * centers[static_cast<std::size_t>(t * 5 % 7 * dim + c)];
  const auto error = [&](const quant::ComplexBookFit& how) {
    std::vector<float> book(static_cast<std::size_t>(how.stages * how.base * dim));
    Workspace work;
    REQUIRE(work.reserve(quant::complex_book_bytes(tokens, dim, how)) == Status::ok);
    REQUIRE(quant::fit_complex_book({rows.data(), {tokens, dim}, {dim, 1}}, how, book, Scratch{work.bytes()}) == Status::ok);
    return mean_square(rows, Page({.book = book.data(), .stages = static_cast<std::int32_t>(how.stages), .base = static_cast<std::int32_t>(how.base),
                                   .channels = 16, .beam = 8, .pairing = how.pairing}, rows, dim).decoded());
  };
  const double usual = error({.stages = 3, .base = 8});
  std::vector<float> random(static_cast<std::size_t>(3 * 8 * dim));
  test::fill_normal(random.data(), random.size(), 17);
  for (float& x : random) x *= 0.1f;
  REQUIRE(usual < mean_square(rows, Page({.book = random.data(), .stages = 3, .base = 8, .channels = 16}, rows, dim).decoded()) / 3);
  REQUIRE(error({.stages = 6, .base = 8}) < usual);
  REQUIRE(error({.stages = 3, .base = 32}) < usual);
  REQUIRE(error({.stages = 3, .base = 8, .rounds = 1}) > usual);
  // Temperatures: any change what is found, soft ones not for the worse, and one far too hot makes all words one.
  for (const quant::ComplexBookFit& how : {quant::ComplexBookFit{.stages = 3, .base = 8, .hot = 0.0}, {.stages = 3, .base = 8, .hot = 1e-2, .cold = 1e-5},
                                           {.stages = 3, .base = 8, .hot = 1e-3, .cold = 1e-3}}) {
    REQUIRE(error(how) != usual);
    CHECK(error(how) == Approx(usual).epsilon(0.25));
  }
  REQUIRE(error({.stages = 3, .base = 8, .hot = 1e3, .cold = 1e3}) > 2 * usual);
  REQUIRE(error({.stages = 3, .base = 8, .pairing = RopePairing::interleaved}) < 2 * usual);
}

TEST_CASE("complex_book: what cannot be fitted is refused", "[quant][complex_book]") {
  std::vector<float> rows(8 * 4, 1.0f), book(2 * 4);
  Workspace work;
  REQUIRE(work.reserve(1 << 16) == Status::ok);
  const auto fit = [&](index_t n, index_t dim, const quant::ComplexBookFit& how) {
    return quant::fit_complex_book({rows.data(), {n, dim}, {dim, 1}}, how, book, Scratch{work.bytes()});
  };
  REQUIRE(fit(8, 4, {.stages = 1, .base = 2}) == Status::ok);
  REQUIRE(fit(8, 3, {.stages = 1, .base = 2}) == Status::invalid_argument);
  REQUIRE(fit(8, 4, {.stages = 0, .base = 2}) == Status::invalid_argument);
  REQUIRE(fit(8, 4, {.stages = 1, .base = 1}) == Status::invalid_argument);
  REQUIRE(fit(8, 4, {.stages = 1, .base = 2, .rounds = 0}) == Status::invalid_argument);
  REQUIRE(fit(8, 4, {.stages = 1, .base = 2, .hot = -1.0}) == Status::invalid_argument);
  REQUIRE(fit(8, 4, {.stages = 1, .base = 2, .hot = 1e-3, .cold = 0.0}) == Status::invalid_argument);
  REQUIRE(fit(8, 4, {.stages = 1, .base = 2, .hot = 1e-3, .cold = 1e-2}) == Status::invalid_argument);
  REQUIRE(fit(8, 4, {.stages = 1, .base = 2, .hot = std::nan("")}) == Status::invalid_argument);
  REQUIRE(fit(8, 4, {.stages = 2, .base = 2}) == Status::shape_mismatch);
  REQUIRE(fit(0, 4, {.stages = 1, .base = 2}) == Status::invalid_argument);
  std::fill(rows.begin(), rows.end(), 0.0f);
  REQUIRE(fit(8, 4, {.stages = 1, .base = 2}) == Status::invalid_argument);
  std::vector<std::byte> small(16);
  rows[0] = 1.0f;
  REQUIRE(quant::fit_complex_book({rows.data(), {8, 4}, {4, 1}}, {.stages = 1, .base = 2}, book, Scratch{small}) == Status::workspace_too_small);
  rows[5] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(fit(8, 4, {.stages = 1, .base = 2}) == Status::ok);
  for (const float x : book) REQUIRE(std::isfinite(x));
}
