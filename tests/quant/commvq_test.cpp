#include <cmath>
#include <complex>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/complex_vq.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/commvq.hpp>

#include <quant/codec_page.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::ComplexVq;
using prim::RopePairing;
using quant::CommVq;

namespace {

using Page = test::CodecPage<ComplexVq>;

int code(const Page& p, index_t slot, index_t k) {
  const std::byte* row = p.bytes.data() + slot * p.codec.row_bytes();
  int c = 0;
  for (int b = 0; b < p.codec.code_bits(); ++b) {
    const index_t bit = k * p.codec.code_bits() + b;
    c |= (static_cast<int>(row[bit / 8]) >> (bit % 8) & 1) << b;
  }
  return c;
}

std::vector<float> random_book(index_t stages, index_t base, index_t dim) {
  std::vector<float> book(static_cast<std::size_t>(stages * base * dim));
  test::fill_normal(book.data(), book.size(), 17);
  for (std::size_t i = 0; i < book.size(); ++i)
    book[i] *= 0.5f / std::sqrt(static_cast<float>(dim)) / static_cast<float>(1 + static_cast<index_t>(i) / (base * dim));
  return book;
}

double mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return sum / static_cast<double>(a.size());
}

}  // namespace

TEST_CASE("commvq: the pair of words, its error and the logit after RoPE are the worked example's", "[quant][commvq][oracle]") {
  const auto o = test::load_oracle("quantization.json", "T_commvq");
  const auto book = test::floats(o.at("half_codebook")), k = test::floats(o.at("k")), q = test::floats(o.at("q"));
  const ComplexVq codec{.book = book.data(), .stages = 1, .base = 3, .channels = 2, .beam = 3, .lengths = false};
  Page page(codec, k, 2);
  REQUIRE(code(page, 0, 0) == o.at("best_A_B")[0].get<int>());
  REQUIRE(code(page, 0, 1) == o.at("best_A_B")[1].get<int>());
  const auto back = page.decoded();
  REQUIRE(2 * mean_square(k, back) == Approx(o.at("sq_err").get<double>()).epsilon(1e-5));
  // Turned as RoPE turns it, the centre gives the example's logit.
  const std::complex<double> turned = std::complex<double>(back[0], back[1]) * std::polar(1.0, o.at("theta_times_position").get<double>());
  REQUIRE(turned.real() * static_cast<double>(q[0]) + turned.imag() * static_cast<double>(q[1]) == Approx(o.at("logit_after_rope").get<double>()).epsilon(1e-6));
  // All nine centres.
  for (const auto& center : o.at("full_centres_[A,B,re,im]")) {
    const std::vector<float> x = {center[2].get<float>(), center[3].get<float>()};
    const auto same = Page(codec, x, 2).decoded();
    REQUIRE(same[0] == Approx(x[0]).margin(1e-6));
    REQUIRE(same[1] == Approx(x[1]).margin(1e-6));
  }
}

TEST_CASE("commvq: with a full beam no pair of words is nearer, with a short one few are", "[quant][commvq]") {
  const auto pairing = GENERATE(RopePairing::half_split, RopePairing::interleaved);
  const index_t dim = 8, base = 9;
  const auto book = random_book(1, base, dim);
  ComplexVq codec{.book = book.data(), .stages = 1, .base = 9, .channels = 8, .beam = 9, .pairing = pairing, .lengths = false};
  auto rows = test::normal_rows(60, dim, 3);
  for (float& x : rows) x *= 0.3f;
  Page page(codec, rows, dim);
  const auto back = page.decoded();
  for (index_t t = 0; t < 60; ++t) {
    double best = 1e9, got = 0;
    for (index_t a = 0; a < base; ++a)
      for (index_t b = 0; b < base; ++b) {
        double far = 0;
        for (index_t j = 0; j < dim / 2; ++j) {
          const auto at = [&](index_t k, index_t c) { return static_cast<double>(book[static_cast<std::size_t>(k * dim + c)]); };
          const index_t x = codec.first_of(j), y = codec.second_of(j);
          const std::complex<double> z = std::complex<double>(at(a, x), at(a, y)) + std::complex<double>(0, 1) * std::complex<double>(at(b, x), at(b, y));
          far += std::norm(z - std::complex<double>(rows[static_cast<std::size_t>(t * dim + x)], rows[static_cast<std::size_t>(t * dim + y)]));
        }
        best = std::min(best, far);
      }
    for (index_t c = 0; c < dim; ++c) got += std::pow(static_cast<double>(rows[static_cast<std::size_t>(t * dim + c)]) - static_cast<double>(back[static_cast<std::size_t>(t * dim + c)]), 2);
    REQUIRE(got == Approx(best).epsilon(1e-5));
  }
  codec.beam = 1;
  const double one = mean_square(rows, Page(codec, rows, dim).decoded());
  codec.beam = 4;
  const double four = mean_square(rows, Page(codec, rows, dim).decoded());
  REQUIRE(mean_square(rows, back) <= four);
  REQUIRE(four < one);
}

TEST_CASE("commvq: attention over codes equals attention over what they decode to", "[quant][commvq]") {
  const index_t dim = GENERATE(64, 80, 96, 112, 128, 256), base = GENERATE(2, 5, 64);
  const auto book = random_book(3, base, dim);
  for (const auto pairing : {RopePairing::half_split, RopePairing::interleaved}) {
    CAPTURE(dim, base);
    Page page({.book = book.data(), .stages = 3, .base = static_cast<std::int32_t>(base), .channels = static_cast<std::int32_t>(dim), .pairing = pairing},
              test::normal_rows(21, dim, 3), dim);
    REQUIRE(page.repaired == 0);
    test::require_folds(page);
    test::require_same_alone(page);
  }
}

TEST_CASE("commvq: a turned row of codes is the codes of turned words", "[quant][commvq]") {
  const index_t dim = 32;
  const auto book = random_book(2, 16, dim);
  auto turned = book;
  const auto turn = [&](float* x) {
    for (index_t j = 0; j < dim / 2; ++j) {
      const std::complex<float> z = std::complex<float>(x[j], x[j + dim / 2]) * std::polar(1.0f, 0.3f * static_cast<float>(j));
      x[j] = z.real(), x[j + dim / 2] = z.imag();
    }
  };
  for (std::size_t i = 0; i < turned.size(); i += static_cast<std::size_t>(dim)) turn(&turned[i]);
  ComplexVq codec{.book = book.data(), .stages = 2, .base = 16, .channels = 32};
  Page page(codec, test::normal_rows(9, dim, 3), dim);
  auto rows = page.decoded();
  for (index_t t = 0; t < 9; ++t) turn(&rows[static_cast<std::size_t>(t * dim)]);
  page.codec.book = turned.data();
  const auto other = page.decoded();
  for (std::size_t i = 0; i < rows.size(); ++i) REQUIRE(other[i] == Approx(rows[i]).margin(1e-5));
}

TEST_CASE("commvq: zeros, every half number, numbers that are none, damaged codes and moved slots", "[quant][commvq]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto book = random_book(2, 5, 8);
  const ComplexVq codec{.book = book.data(), .stages = 2, .base = 5, .channels = 8};
  for (const float x : Page(codec, std::vector<float>(16, 0.0f), 8).decoded()) REQUIRE(x == 0.0f);
  Page bad(codec, {1, nan, -2, inf, 3, -inf, 0, 0.5f}, 8), good(codec, {1, 0, -2, 3, 3, -3, 0, 0.5f}, 8);
  REQUIRE(bad.repaired == 3);
  REQUIRE(good.repaired == 0);
  REQUIRE(bad.decoded() == good.decoded());
  REQUIRE(Page(codec, std::vector<float>(8, 6e4f), 8).repaired == 1);
  Page halves(codec, test::all_halves(8), 8);
  for (const float x : halves.decoded()) REQUIRE(std::isfinite(x));
  Page a(codec, test::normal_rows(5, 8, 1), 8), b(codec, test::normal_rows(7, 8, 2), 8);
  Page::Codec::move(codec, b.span(), 6, a.span(), 2);
  REQUIRE(b.decoded(6, 1) == a.decoded(2, 1));
  std::fill_n(b.bytes.begin(), codec.code_bytes(), std::byte{0xff});  // codes 7 of 5
  for (const float x : b.decoded(0, 1)) REQUIRE(std::isfinite(x));
}

TEST_CASE("commvq: bits per number, books of each head in a cache, and what is refused", "[quant][commvq][oracle][cache]") {
  const auto z = test::load_oracle("quantization.json", "Z_effective_bits");
  const CacheShape wide{.head_dim = 128};
  const std::vector<float> zeros(21 * 64 * 128, 0.0f);
  const CommVq paper{.key_books = {zeros.data(), 1, 1, 21 * 64 * 128}, .value_books = {zeros.data(), 1, 1, 21 * 64 * 128}};
  REQUIRE(paper.validate(wide) == Status::ok);
  const ComplexVq codec = paper.key_codec(wide, {});
  REQUIRE(codec.stages == 21);
  // Published with a length per 1024 numbers; the codes of a row end within a byte.
  REQUIRE(static_cast<double>(codec.codes() * codec.code_bits()) / 128 + 16.0 / 1024 == z.at("CommVQ 21 x 12 bit per 128 + fp16 norm per 1024").get<double>());
  REQUIRE(test::bits_per_number(codec, 128) == 2.125);

  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32};
  std::vector<float> books;
  for (index_t h = 0; h < 4; ++h) {
    const auto one = random_book(4, 8, 32);
    for (const float x : one) books.push_back(x * (1.0f + 0.1f * static_cast<float>(h)));
  }
  const HeadRows table{books.data(), 2, 2, 4 * 8 * 32};
  const CommVq stage{.base = 8, .residual_window = 3, .sinks = 2, .key_books = table, .value_books = table};
  REQUIRE(stage.validate(shape) == Status::ok);
  test::CacheRig rig(shape, recipe(stage), 120, 100);
  std::mt19937 random(3);
  for (const index_t l : {0, 1}) {
    const test::Tokens t(shape, 100, random);
    REQUIRE(rig.cache.append(rig.ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, l) == Status::ok);
    std::vector<float> k(100 * 32), v = k;
    for (const index_t h : {0, 1}) {
      REQUIRE(rig.cache.read(l, h, 0, test::view2(k.data(), 100, 32), test::view2(v.data(), 100, 32)) == Status::ok);
      std::vector<float> rows(t.k.begin() + h * 3200, t.k.begin() + (h + 1) * 3200);
      for (float& x : rows) x = kvcondense::detail::half_value(kvcondense::detail::half_bits(x));  // in the exact window before
      const auto back = Page(stage.key_codec(shape, {l, h}), rows, 32).decoded();
      for (std::size_t i = 64; i < 97 * 32; ++i) REQUIRE(k[i] == back[i]);
      REQUIRE(rig.cache.layers()[l].heads[h].keys.coded().live() == 95);
    }
  }
  REQUIRE(stage.key_codec(shape, {0, 0}).fingerprint() != stage.key_codec(shape, {1, 0}).fingerprint());

  REQUIRE(CommVq{}.validate(shape) == Status::missing_input);
  REQUIRE(std::string(CommVq{.key_books = table}.missing()) == "value_books");
  const auto refused = [&](auto change) {
    CommVq c = stage;
    change(c);
    REQUIRE(c.validate(shape) == Status::invalid_argument);
  };
  refused([](CommVq& c) { c.base = 1; });
  refused([](CommVq& c) { c.base = 300; });
  refused([](CommVq& c) { c.base = 7; });
  refused([](CommVq& c) { c.stages = 5; });
  refused([](CommVq& c) { c.stages = -1; });
  refused([](CommVq& c) { c.beam = 0; });
  refused([](CommVq& c) { c.residual_window = -1; });
  refused([](CommVq& c) { c.sinks = -1; });
  refused([](CommVq& c) { c.value_books.layers = 1; });
  books[7] = std::numeric_limits<float>::quiet_NaN();
  refused([](CommVq&) {});
  CommVq fewer = stage;
  books[7] = 0.0f;
  fewer.stages = 2;
  REQUIRE(fewer.validate(shape) == Status::ok);
  REQUIRE(fewer.key_codec(shape, {}).codes() == 4);
}
