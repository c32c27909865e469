#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/qjl.hpp>

#include <quant/codec_page.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::SignSketch;
using prim::SketchRows;
using quant::Qjl;

namespace {

using Page = test::CodecPage<SketchRows>;

SketchRows plain(index_t bits, std::uint64_t seed = 1) { return {{bits, seed}, {}, 0, 1}; }

double dot(const float* a, const float* b, index_t n) {
  double sum = 0;
  for (index_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

template <class C>
float score(const C& codec, const std::vector<float>& k, const std::vector<float>& q) {
  const auto dim = static_cast<index_t>(k.size());
  test::CodecPage<C> page(codec, k, dim);
  float out = 0.0f;
  prim::PageCodec<Cpu, C>::scores(codec, page.span(), 0, 1, {q.data(), 1, dim}, {&out, 1, 1});
  return out;
}

}  // namespace

TEST_CASE("qjl: signs, length and estimate are the worked example's", "[quant][qjl][oracle]") {
  const auto o = test::load_oracle("quantization.json", "M4_qjl");
  const auto s = test::floats(o.at("S")), k = test::floats(o.at("k")), q = test::floats(o.at("q"));
  const SketchRows codec{{16, 0, s.data(), 8}, {}, 0, 1};
  Page page(codec, k, 8);
  for (index_t b = 0; b < 2; ++b)
    REQUIRE(static_cast<int>(page.bytes[b]) == std::stoi(o.at("bytes_lsb_first")[static_cast<std::size_t>(b)].get<std::string>(), nullptr, 16));
  REQUIRE(page.half_at(2) == Approx(o.at("norm").get<double>()).epsilon(5e-4));
  // The length is one of fp16's.
  const double fp16 = static_cast<double>(page.half_at(2)) / o.at("norm").get<double>();
  REQUIRE(score(codec, k, q) == Approx(o.at("estimate").get<double>() * fp16).epsilon(1e-5));
  REQUIRE(dot(k.data(), q.data(), 8) == Approx(o.at("exact").get<double>()));
}

TEST_CASE("qjl: attention over signs equals attention over what they stand for", "[quant][qjl]") {
  const index_t dim = GENERATE(9, 64, 80, 96, 112, 128, 256);
  for (const SketchRows& codec : {plain(8), plain(256), SketchRows{{64, 3}, {40, 5}, 8, 32}, SketchRows{{1024, 3}, {128, 5}, 1, 8}}) {
    CAPTURE(dim, codec.sketch.bits);
    Page page(codec, test::normal_rows(64, dim, 3), dim);
    REQUIRE(page.repaired == 0);
    // Long sums of signs cancel: what is compared is small beside its terms.
    test::require_folds(page, 2e-5);
  }
}

TEST_CASE("qjl: scores depend on their slot alone", "[quant][qjl]") {
  Page page({{64, 3}, {40, 5}, 8, 8}, test::normal_rows(40, 80, 3), 80);
  test::require_same_alone(page);
}

TEST_CASE("qjl: the estimate is unbiased, and varies as the paper says", "[quant][qjl]") {
  const index_t dim = GENERATE(64, 80, 128);
  const index_t bits = GENERATE(64, 256);
  std::vector<float> k(static_cast<std::size_t>(dim)), q = k;
  test::fill_normal(k.data(), k.size(), 1), test::fill_normal(q.data(), q.size(), 2);
  const bool one_channel = GENERATE(false, true);  // a single direction: the worst for a single Hadamard transform
  if (one_channel) std::fill(k.begin(), k.end(), 0.0f), k[5] = 3.0f;
  for (std::size_t i = 0; i < q.size(); ++i) q[i] += 0.3f * k[i];
  const double want = dot(k.data(), q.data(), dim), kk = dot(k.data(), k.data(), dim), qq = dot(q.data(), q.data(), dim);
  const int runs = 1500;
  double mean = 0, square = 0;
  for (int r = 0; r < runs; ++r) {
    const auto e = static_cast<double>(score(plain(bits, static_cast<std::uint64_t>(r) + 7), k, q));
    mean += e / runs, square += e * e / runs;
  }
  const double variance = square - mean * mean;
  const double published = (std::numbers::pi / 2 * kk * qq - want * want) / static_cast<double>(bits);
  CAPTURE(dim, bits, one_channel, mean, want, variance, published);
  // Directions of a block are orthogonal, which takes away from the variance of independent ones.
  REQUIRE(variance < 1.25 * published);
  REQUIRE(variance > 0.2 * published);
  // Four standard errors, and what two rounds of signs are less random than normal numbers.
  REQUIRE(std::fabs(mean - want) < 4 * std::sqrt(variance / runs) + 0.02 * std::sqrt(kk * qq / static_cast<double>(dim)));
}

TEST_CASE("qjl: strong channels are those of the group, and go into a sketch of their own", "[quant][qjl]") {
  const index_t dim = 64;
  auto rows = test::normal_rows(64, dim, 4);
  for (index_t t = 0; t < 64; ++t)
    for (const index_t c : t < 32 ? std::vector<index_t>{9, 3} : std::vector<index_t>{60, 1})
      rows[static_cast<std::size_t>(t * dim + c)] *= 30.0f;
  const SketchRows codec{{256, 1}, {256, 2}, 2, 32};
  Page page(codec, rows, dim);
  const index_t at = codec.group_at(64, 0);
  REQUIRE(static_cast<int>(page.bytes[at]) == 3);
  REQUIRE(static_cast<int>(page.bytes[at + 1]) == 9);
  REQUIRE(static_cast<int>(page.bytes[at + 2]) == 1);
  REQUIRE(static_cast<int>(page.bytes[at + 3]) == 60);
  // The two lengths are those of the two parts.
  const index_t lengths = 32 + 32;
  for (const index_t t : {0, 40}) {
    double few = 0, all = dot(&rows[static_cast<std::size_t>(t * dim)], &rows[static_cast<std::size_t>(t * dim)], dim);
    for (const index_t c : t < 32 ? std::vector<index_t>{9, 3} : std::vector<index_t>{60, 1})
      few += std::pow(static_cast<double>(rows[static_cast<std::size_t>(t * dim + c)]), 2);
    REQUIRE(page.half_at(t * codec.row_bytes() + lengths) == Approx(std::sqrt(all - few)).epsilon(1e-3));
    REQUIRE(page.half_at(t * codec.row_bytes() + lengths + 2) == Approx(std::sqrt(few)).epsilon(1e-3));
  }
  // That makes estimates better.
  Page without(plain(512), rows, dim);
  std::vector<float> q(static_cast<std::size_t>(20 * dim)), a(20 * 64), b = a;
  test::fill_normal(q.data(), q.size(), 8);
  for (index_t r = 0; r < 20; ++r)  // a query that looks at strong keys is weak where they are strong
    for (const index_t c : {1, 3, 9, 60}) q[static_cast<std::size_t>(r * dim + c)] *= 0.03f;
  Page::Codec::scores(codec, page.span(), 0, 64, {q.data(), 20, dim}, {a.data(), 20, 64});
  Page::Codec::scores(without.codec, without.span(), 0, 64, {q.data(), 20, dim}, {b.data(), 20, 64});
  double error = 0, plain_error = 0;
  for (index_t r = 0; r < 20; ++r)
    for (index_t t = 0; t < 64; ++t) {
      const double want = dot(&q[static_cast<std::size_t>(r * dim)], &rows[static_cast<std::size_t>(t * dim)], dim);
      error += std::pow(static_cast<double>(a[static_cast<std::size_t>(r * 64 + t)]) - want, 2);
      plain_error += std::pow(static_cast<double>(b[static_cast<std::size_t>(r * 64 + t)]) - want, 2);
    }
  REQUIRE(error < plain_error / 10);
}

TEST_CASE("qjl: equally strong channels, zeros, and numbers that are none", "[quant][qjl]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const SketchRows codec{{16, 1}, {16, 2}, 2, 2};
  Page ones(codec, std::vector<float>(16, 1.0f), 8);
  REQUIRE(static_cast<int>(ones.bytes[codec.group_at(2, 0)]) == 0);
  REQUIRE(static_cast<int>(ones.bytes[codec.group_at(2, 0) + 1]) == 1);
  Page zeros(codec, std::vector<float>(16, 0.0f), 8);
  REQUIRE(zeros.repaired == 0);
  for (const float x : zeros.decoded()) REQUIRE(x == 0.0f);
  Page bad(codec, {1, nan, -2, inf, 3, -inf, 0, 0.5f, 1, 1, 1, 1, 1, 1, 1, 1}, 8);
  Page good(codec, {1, 0, -2, 3, 3, -3, 0, 0.5f, 1, 1, 1, 1, 1, 1, 1, 1}, 8);
  REQUIRE(bad.repaired == 3);
  REQUIRE(good.repaired == 0);
  REQUIRE(bad.decoded() == good.decoded());
  REQUIRE(Page(plain(16), std::vector<float>(8, 6e4f), 8).repaired == 1);  // its length is none of fp16's
  Page halves({{64, 1}, {64, 2}, 4, 32}, test::all_halves(64), 64);
  for (const float x : halves.decoded()) REQUIRE(std::isfinite(x));
}

TEST_CASE("qjl: slots without strong channels move", "[quant][qjl]") {
  Page a(plain(64), test::normal_rows(5, 80, 1), 80), b(plain(64), test::normal_rows(7, 80, 2), 80);
  Page::Codec::move(a.codec, b.span(), 6, a.span(), 2);
  REQUIRE(b.decoded(6, 1) == a.decoded(2, 1));
  REQUIRE(b.bytes.ok());
}

TEST_CASE("qjl: bits per number are the published ones, first layers have more", "[quant][qjl][oracle]") {
  const auto z = test::load_oracle("quantization.json", "Z_effective_bits");
  const CacheShape shape{.layers = 20, .head_dim = 128};
  const Qjl qjl{};
  REQUIRE(test::bits_per_number(qjl.key_codec(shape, {15, 0}), 128) ==
          z.at("QJL keys released defaults m=256,outlier 256,fp16 norms x2, 8 outlier idx per 32 tokens, D128").get<double>());
  REQUIRE(test::bits_per_number(qjl.key_codec(shape, {14, 0}), 128) == z.at("QJL keys first layers m=512, outlier 128").get<double>());
  REQUIRE(test::bits_per_number(qjl.value_codec(), 128) == z.at("QJL values 2b G32 fp16").get<double>());
  // What a cache allocates: two layers of each kind.
  const CacheShape small{.layers = 2, .head_dim = 128};
  test::CacheRig rig(small, recipe(Qjl{.first_layers = 1, .buffer = 64}), 200, 128);
  std::mt19937 random(1);
  for (const index_t layer : {0, 1}) {
    const test::Tokens t(small, 128, random);
    REQUIRE(rig.cache.append(rig.ctx, layer, t.keys(small), t.values(small)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, layer) == Status::ok);
  }
  const auto& heads = [&](index_t layer) -> auto& { return rig.cache.layers()[layer].heads[0]; };
  REQUIRE(heads(0).keys.coded().live() == 128);
  REQUIRE(heads(0).values.coded().live() == 64);
  REQUIRE(heads(0).keys.coded().page_payload() * 8 == static_cast<std::size_t>(5.265625 * 64 * 128));
  REQUIRE(heads(1).keys.coded().page_payload() * 8 == static_cast<std::size_t>(4.265625 * 64 * 128));
}

TEST_CASE("qjl: settings that fit nothing are refused", "[quant][qjl]") {
  const CacheShape shape{.layers = 20, .head_dim = 64};
  REQUIRE(Qjl{}.validate(shape) == Status::ok);
  REQUIRE(Qjl{.bits = 12}.validate(shape) == Status::invalid_argument);
  REQUIRE(Qjl{.bits = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(Qjl{.bits = 2048}.validate(shape) == Status::invalid_argument);
  REQUIRE(Qjl{.first_bits = 12}.validate(shape) == Status::invalid_argument);
  REQUIRE(Qjl{.bits = 12, .first_layers = 20}.validate(shape) == Status::ok);  // no layer has these
  REQUIRE(Qjl{.strong_bits = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(Qjl{.strong_bits = 0, .first_strong_bits = 0, .channels = 0}.validate(shape) == Status::ok);
  REQUIRE(Qjl{.channels = 64}.validate(shape) == Status::invalid_argument);
  REQUIRE(Qjl{.group_size = 48}.validate(shape) == Status::invalid_argument);
  REQUIRE(Qjl{.group_size = 1}.validate(shape) == Status::invalid_argument);  // its strong channels would be each slot's own
  REQUIRE(Qjl{.group_size = 2}.validate(shape) == Status::ok);
  REQUIRE(Qjl{.channels = 0, .group_size = 1}.validate(shape) == Status::ok);
  REQUIRE(Qjl{.value_group = 48}.validate(shape) == Status::invalid_argument);
  REQUIRE(Qjl{.buffer = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(Qjl{.sinks = -1}.validate(shape) == Status::invalid_argument);
  const float matrix[8 * 4] = {};
  REQUIRE_FALSE(SketchRows{{8, 0, matrix, 4}, {}, 0, 1}.valid(8));
}
