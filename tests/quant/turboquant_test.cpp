#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/turboquant.hpp>

#include <quant/codec_page.hpp>
#include <support/cache_rig.hpp>
#include <support/fill.hpp>
#include <support/guarded.hpp>
#include <support/naive_cache.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::LevelCodes;
using prim::LevelScale;

namespace {

using Page = prim::PageCodec<Cpu, LevelCodes>;

LevelCodes codec_of(int bits, index_t dim, LevelScale scale = LevelScale::norm, bool normal = false) {
  return {bits, scale, prim::fit_levels(bits, dim, normal)};
}

/// Rows in a page, as they are stored and as they come back.
struct Stored {
  LevelCodes codec;
  index_t dim, n;
  test::Guarded<std::byte> bytes;
  prim::PageSpan page;
  index_t repaired;

  Stored(const LevelCodes& c, const std::vector<float>& rows, index_t row)
      : codec(c), dim(row), n(static_cast<index_t>(rows.size()) / row), bytes(c.page_bytes(n, row)), page{bytes.data(), n, row} {
    repaired = Page::encode(codec, page, 0, n, {rows.data(), n, dim});
  }
  std::vector<float> decoded() const {
    std::vector<float> out(static_cast<std::size_t>(n * dim));
    Page::decode(codec, page, 0, n, {out.data(), n, dim});
    return out;
  }
  int code(index_t slot, index_t channel) const {
    const auto* row = reinterpret_cast<const std::uint8_t*>(bytes.data() + slot * codec.row_bytes(dim));
    int code = 0;
    for (int b = 0; b < codec.bits; ++b) {
      const index_t bit = channel * codec.bits + b;
      code |= ((row[bit / 8] >> (bit % 8)) & 1) << b;
    }
    return code;
  }
  std::string hex(index_t slot) const {
    std::string text;
    char two[3];
    for (index_t i = 0; i < codec.row_bytes(dim); ++i) {
      std::snprintf(two, sizeof two, "%02x", static_cast<unsigned>(bytes.data()[slot * codec.row_bytes(dim) + i]));
      text += two;
    }
    return text;
  }
};

double length(const float* x, index_t n) {
  double sum = 0;
  for (index_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return std::sqrt(sum);
}

/// Mean square error of one number of a rotated unit vector; `levels` ascend, their positive half is last.
template <class Levels>
double distortion(const Levels& levels, int bits, index_t dim, double unit) {
  const std::size_t half = std::size_t{1} << (bits - 1), first = levels.size() == 8 && unit == 1.0 ? 0 : half;
  double sum = 0, mass = 0;
  const double d = static_cast<double>(dim), step = std::fmin(1.0, 9 / std::sqrt(d)) / 20000;
  for (int i = 0; i < 20000; ++i) {
    const double t = (i + 0.5) * step, f = std::pow(1 - t * t, (d - 3) / 2);
    double nearest = 1e9;
    for (std::size_t l = 0; l < half; ++l) nearest = std::fmin(nearest, std::fabs(t - static_cast<double>(levels[first + l]) / unit));
    sum += f * nearest * nearest, mass += f;
  }
  return sum / mass;
}

}  // namespace

TEST_CASE("turboquant: levels are the published ones of a rotated unit vector and of a normal density", "[quant][turboquant][oracle]") {
  const auto spheres = test::load_oracle("quantization.json", "M2_turboquant_codebooks").at("tables");
  for (const index_t dim : {64, 128, 256})
    for (int bits = 1; bits <= 4; ++bits) {
      CAPTURE(dim, bits);
      const auto want = test::floats(spheres.at("d" + std::to_string(dim)).at("bits" + std::to_string(bits)).at("centroids_times_sqrt_d"));
      const LevelCodes codec = codec_of(bits, dim);
      for (int c = 0; c < 1 << bits; ++c)
        REQUIRE(codec.value(c) * std::sqrt(static_cast<float>(dim)) == Approx(want[static_cast<std::size_t>(c)]).margin(1e-3));
      // The published iteration stopped a little early: ours err no more.
      REQUIRE(distortion(codec.level, bits, dim, 1.0) <=
              distortion(want, bits, dim, std::sqrt(static_cast<double>(dim))) * (1 + 1e-6));
    }
  const auto normal = test::load_oracle("quantization.json", "M1_lloyd_max_gaussian");
  for (int bits = 1; bits <= 4; ++bits) {
    const auto want = test::floats(normal.at("bits" + std::to_string(bits)).at("centroids"));
    const LevelCodes codec = codec_of(bits, 16, LevelScale::norm, true);
    for (int c = 0; c < 1 << bits; ++c) REQUIRE(codec.value(c) * 4.0f == Approx(want[static_cast<std::size_t>(c)]).margin(2e-6));
  }
}

TEST_CASE("turboquant: the worked example's codes and rows", "[quant][turboquant][oracle]") {
  const auto o = test::load_oracle("quantization.json", "M3_turboquant_example");
  const auto unit = test::floats(o.at("rotated_unit"));
  const auto levels = test::floats(o.at("codebook_b2_d8"));
  const LevelCodes codec = codec_of(2, 8);
  for (int c = 0; c < 4; ++c) REQUIRE(codec.value(c) == Approx(levels[static_cast<std::size_t>(c)]).margin(2e-6));
  const Stored s(codec, unit, 8);
  const auto want = o.at("indices").get<std::vector<int>>();
  for (index_t c = 0; c < 8; ++c) REQUIRE(s.code(0, c) == want[static_cast<std::size_t>(c)]);
  // H8 times the signs undoes H8 after the signs.
  auto row = s.decoded();
  prim::RowTransform<Cpu, prim::Hadamard>::backward({}, 8, {row.data(), 1, 8});
  const auto signs = test::floats(o.at("signs")), back = test::floats(o.at("recon_unit_mse"));
  for (std::size_t c = 0; c < 8; ++c) REQUIRE(row[c] * signs[c] == Approx(back[c]).margin(1e-3));
}

TEST_CASE("turboquant: slots are those of the engines that rotate with a plain Hadamard transform", "[quant][turboquant][oracle]") {
  const auto o = test::load_oracle("quantization.json", "M5_rotated_slot_layout");
  auto k = test::floats(o.at("k"));
  auto q = test::floats(o.at("q"));
  prim::RowTransform<Cpu, prim::Hadamard>::forward({}, 16, {k.data(), 1, 16});
  prim::RowTransform<Cpu, prim::Hadamard>::query({}, 16, {q.data(), 1, 16});
  for (const int bits : {3, 4}) {
    const auto& want = o.at("cases").at("k" + std::to_string(bits) + "v" + std::to_string(bits));
    const Stored s(codec_of(bits, 16, LevelScale::norm, true), k, 16);
    const auto codes = want.at("key_codes").get<std::vector<int>>();
    for (index_t c = 0; c < 16; ++c) REQUIRE(s.code(0, c) == codes[static_cast<std::size_t>(c)]);
    REQUIRE(s.hex(0) == want.at("slot_hex").get<std::string>().substr(0, 2 * want.at("key_bytes").get<std::size_t>()));
    float logit = 0;
    Page::scores(s.codec, s.page, 0, 1, {q.data(), 1, 16}, {&logit, 1, 1});
    REQUIRE(logit / 4 == Approx(want.at("logit_no_norm_correction").get<double>()).epsilon(1e-3));
    const Stored unit(codec_of(bits, 16, LevelScale::unit, true), k, 16);
    Page::scores(unit.codec, unit.page, 0, 1, {q.data(), 1, 16}, {&logit, 1, 1});
    REQUIRE(logit / 4 == Approx(want.at("logit_norm_correction").get<double>()).epsilon(1e-3));
  }
}

TEST_CASE("turboquant: square errors of unit vectors are the published ones", "[quant][turboquant][oracle]") {
  const auto tables = test::load_oracle("quantization.json", "M2_turboquant_codebooks").at("tables");
  const index_t dim = GENERATE(64, 128, 256);
  std::vector<float> x(static_cast<std::size_t>(10000 * dim));
  test::fill_normal(x.data(), x.size(), 6);
  for (int bits = 1; bits <= 4; ++bits) {
    double error[3] = {}, long_rows = 0;
    for (const auto scale : {LevelScale::norm, LevelScale::unit, LevelScale::least_squares}) {
      const auto back = Stored(codec_of(bits, dim, scale), x, dim).decoded();
      for (index_t r = 0; r < 10000; ++r) {
        const float *a = x.data() + r * dim, *b = back.data() + r * dim;
        double sum = 0;
        for (index_t c = 0; c < dim; ++c) sum += (static_cast<double>(a[c]) - static_cast<double>(b[c])) * (static_cast<double>(a[c]) - static_cast<double>(b[c]));
        error[static_cast<int>(scale)] += sum / length(a, dim) / length(a, dim) / 10000;
        if (scale == LevelScale::unit) long_rows = std::max(long_rows, std::fabs(length(b, dim) / length(a, dim) - 1));
      }
    }
    CAPTURE(dim, bits);
    REQUIRE(error[0] == Approx(tables.at("d" + std::to_string(dim)).at("bits" + std::to_string(bits)).at("D_mse_unit_vector").get<double>()).epsilon(0.03));
    REQUIRE(error[2] <= error[0]);
    REQUIRE(error[2] <= error[1]);
    REQUIRE(long_rows < 1e-3);
  }
}

TEST_CASE("turboquant: rows that are folded give what decoded rows give", "[quant][turboquant]") {
  const index_t dim = GENERATE(1, 7, 64, 80, 96, 112, 128, 256);
  const int bits = GENERATE(1, 2, 3, 4);
  std::vector<float> x(static_cast<std::size_t>(37 * dim)), q(static_cast<std::size_t>(9 * dim)), w(9 * 37);
  test::fill_normal(x.data(), x.size(), 1), test::fill_normal(q.data(), q.size(), 2), test::fill_uniform(w.data(), w.size(), 3);
  const Stored s(codec_of(bits, std::max<index_t>(dim, 4), LevelScale::unit), x, dim);
  const auto back = s.decoded();
  std::vector<float> scores(9 * 40, -1.0f), sums(q.size(), 0.5f);
  Page::scores(s.codec, s.page, 2, 33, {q.data(), 9, dim}, {scores.data(), 9, 40});
  Page::accumulate(s.codec, s.page, 2, 33, {w.data(), 9, 37}, {sums.data(), 9, dim});
  for (index_t r = 0; r < 9; ++r) {
    std::vector<double> want(static_cast<std::size_t>(dim), 0.5);
    for (index_t i = 0; i < 33; ++i) {
      double dot = 0;
      for (index_t c = 0; c < dim; ++c) {
        const auto v = static_cast<double>(back[static_cast<std::size_t>((i + 2) * dim + c)]);
        dot += static_cast<double>(q[static_cast<std::size_t>(r * dim + c)]) * v;
        want[static_cast<std::size_t>(c)] += static_cast<double>(w[static_cast<std::size_t>(r * 37 + i)]) * v;
      }
      REQUIRE(scores[static_cast<std::size_t>(r * 40 + i)] == Approx(dot).epsilon(1e-5).margin(2e-5));
    }
    for (index_t c = 0; c < dim; ++c)
      REQUIRE(sums[static_cast<std::size_t>(r * dim + c)] == Approx(want[static_cast<std::size_t>(c)]).epsilon(1e-5).margin(2e-5));
  }
  std::vector<std::byte> other(s.codec.page_bytes(3, dim));
  Page::move(s.codec, {other.data(), 3, dim}, 1, s.page, 30);
  std::vector<float> moved(static_cast<std::size_t>(dim));
  Page::decode(s.codec, {other.data(), 3, dim}, 1, 1, {moved.data(), 1, dim});
  for (index_t c = 0; c < dim; ++c) REQUIRE(moved[static_cast<std::size_t>(c)] == back[static_cast<std::size_t>(30 * dim + c)]);
}

TEST_CASE("turboquant: zeros are exact, what is no number is repaired and counted", "[quant][turboquant]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const LevelCodes codec = codec_of(3, 8);
  const Stored zeros(codec, std::vector<float>(16, 0.0f), 8);
  REQUIRE(zeros.repaired == 0);
  for (const float x : zeros.decoded()) REQUIRE(x == 0.0f);
  const Stored bad(codec, {1, nan, -2, inf, 3, -inf, 0, 0.5f}, 8), good(codec, {1, 0, -2, 3, 3, -3, 0, 0.5f}, 8);
  REQUIRE(bad.repaired == 3);
  REQUIRE(good.repaired == 0);
  REQUIRE(bad.decoded() == good.decoded());
  REQUIRE(Stored(codec, std::vector<float>(8, nan), 8).decoded() == std::vector<float>(8, 0.0f));
  REQUIRE(Stored(codec, std::vector<float>(8, 6e4f), 8).repaired == 1);  // its length is none of fp16's
  for (std::uint32_t h = 0; h < 65536; ++h) {
    std::vector<float> row(8, kvcondense::detail::half_value(static_cast<std::uint16_t>(h)));
    row[3] = 1.0f;
    for (const float x : Stored(codec, row, 8).decoded()) REQUIRE(std::isfinite(x));
  }
}

TEST_CASE("turboquant: the worked example's second stage, and what it stands for", "[quant][turboquant][oracle]") {
  const auto o = test::load_oracle("quantization.json", "M3_turboquant_example");
  const auto signs = test::floats(o.at("signs")), query = test::floats(o.at("query"));
  const auto unit = test::floats(o.at("rotated_unit"));
  // The example's directions see rows as they were: turned, they see rotated ones.
  auto directions = test::floats(o.at("S"));
  for (std::size_t i = 0; i < 64; ++i) directions[i] *= signs[i % 8];
  prim::RowTransform<Cpu, prim::Hadamard>::forward({}, 8, {directions.data(), 8, 8});
  const prim::Sketched<LevelCodes> codec{codec_of(2, 8), {8, 0, directions.data(), 8}};
  using Two = prim::PageCodec<Cpu, prim::Sketched<LevelCodes>>;
  test::Guarded<std::byte> bytes(codec.page_bytes(1, 8));
  const prim::PageSpan page{bytes.data(), 1, 8};
  REQUIRE(Two::encode(codec, page, 0, 1, {unit.data(), 1, 8}) == 0);
  const auto want = o.at("qjl_bits").get<std::vector<int>>();
  for (int j = 0; j < 8; ++j) REQUIRE((static_cast<int>(bytes[4]) >> j & 1) == want[static_cast<std::size_t>(j)]);
  std::uint16_t half;
  std::memcpy(&half, bytes.data() + 5, 2);
  REQUIRE(kvcondense::detail::half_value(half) == Approx(o.at("residual_norm").get<double>()).epsilon(1e-3));
  std::vector<float> row(8);
  Two::decode(codec, page, 0, 1, {row.data(), 1, 8});
  prim::RowTransform<Cpu, prim::Hadamard>::backward({}, 8, {row.data(), 1, 8});
  const auto back = test::floats(o.at("recon_unit_prod"));
  for (std::size_t c = 0; c < 8; ++c) REQUIRE(row[c] * signs[c] == Approx(back[c]).margin(1e-3));
  auto q = query;
  for (std::size_t c = 0; c < 8; ++c) q[c] *= signs[c];
  prim::RowTransform<Cpu, prim::Hadamard>::forward({}, 8, {q.data(), 1, 8});
  float product = 0;
  Two::scores(codec, page, 0, 1, {q.data(), 1, 8}, {&product, 1, 1});
  const double length = o.at("norm").get<double>();
  REQUIRE(static_cast<double>(product) * length == Approx(o.at("ip_prod_est").get<double>()).margin(5e-3));
  REQUIRE(bytes.ok());
}

TEST_CASE("turboquant: with its second stage scores are unbiased, and vary as published", "[quant][turboquant]") {
  const index_t dim = GENERATE(64, 128);
  const int bits = GENERATE(2, 3, 4);
  std::vector<float> k(static_cast<std::size_t>(dim)), q = k;
  test::fill_normal(k.data(), k.size(), 1), test::fill_normal(q.data(), q.size(), 2);
  for (std::size_t i = 0; i < q.size(); ++i) q[i] += k[i];
  const double kk = length(k.data(), dim), qq = length(q.data(), dim);
  double want = 0;
  for (std::size_t i = 0; i < q.size(); ++i) want += static_cast<double>(k[i]) * static_cast<double>(q[i]);
  const CacheShape shape{.head_dim = dim};
  const int runs = 3000;
  double mean = 0, square = 0;
  for (int r = 0; r < runs; ++r) {
    const auto codec = quant::TurboQuant{.key_bits = bits, .scale = LevelScale::norm, .sketch = true, .seed = static_cast<std::uint64_t>(r) + 5}.key_codec(shape);
    auto x = k, y = q;
    prim::RowTransform<Cpu, prim::Hadamard>::forward(codec.transform, dim, {x.data(), 1, dim});
    prim::RowTransform<Cpu, prim::Hadamard>::query(codec.transform, dim, {y.data(), 1, dim});
    std::vector<std::byte> bytes(codec.page_bytes(1, dim));
    using Two = prim::PageCodec<Cpu, prim::Sketched<LevelCodes>>;
    Two::encode(codec.codec, {bytes.data(), 1, dim}, 0, 1, {x.data(), 1, dim});
    float s = 0;
    Two::scores(codec.codec, {bytes.data(), 1, dim}, 0, 1, {y.data(), 1, dim}, {&s, 1, 1});
    mean += static_cast<double>(s) / runs, square += static_cast<double>(s) * static_cast<double>(s) / runs;
  }
  const double variance = square - mean * mean;
  const double left = test::load_oracle("quantization.json", "M2_turboquant_codebooks").at("tables").at("d" + std::to_string(dim))
                          .at("bits" + std::to_string(bits - 1)).at("D_mse_unit_vector").get<double>();
  CAPTURE(dim, bits, mean, want, variance);
  REQUIRE(std::fabs(mean - want) < 4 * std::sqrt(variance / runs) + 0.004 * kk * qq);
  REQUIRE(variance < 1.2 * 1.5708 * left * kk * kk * qq * qq / static_cast<double>(dim));
}

TEST_CASE("turboquant: scores and sums of two stages are those of what they decode to", "[quant][turboquant]") {
  const index_t dim = GENERATE(64, 80, 96, 112, 128, 256);
  const int bits = GENERATE(1, 4);
  test::CodecPage<prim::Sketched<LevelCodes>> page({codec_of(bits, dim, LevelScale::unit), {dim, 9}}, test::normal_rows(37, dim, 3), dim);
  REQUIRE(page.repaired == 0);
  test::require_folds(page, 2e-5);
  test::CodecPage<prim::Sketched<LevelCodes>> other(page.codec, test::normal_rows(7, dim, 4), dim);
  decltype(page)::Codec::move(page.codec, other.span(), 6, page.span(), 2);
  REQUIRE(other.decoded(6, 1) == page.decoded(2, 1));
  REQUIRE(other.bytes.ok());
  // Off, the pages are the codec's.
  test::CodecPage<prim::Sketched<LevelCodes>> off({page.codec.codec, {}}, page.rows, dim);
  test::CodecPage<LevelCodes> one(page.codec.codec, page.rows, dim);
  REQUIRE(off.bytes.size() == one.bytes.size());
  REQUIRE(std::equal(one.bytes.begin(), one.bytes.end(), off.bytes.begin()));
  REQUIRE(off.decoded() == one.decoded());
  REQUIRE(off.codec.fingerprint() == one.codec.fingerprint());
  // What is no number is one before both stages.
  auto rows = page.rows;
  rows[3] = std::numeric_limits<float>::quiet_NaN();
  rows[static_cast<std::size_t>(dim + 5)] = std::numeric_limits<float>::infinity();
  test::CodecPage<prim::Sketched<LevelCodes>> bad(page.codec, rows, dim);
  REQUIRE(bad.repaired == 2);
  for (const float x : bad.decoded()) REQUIRE(std::isfinite(x));
}

TEST_CASE("turboquant: bits per number, widths and fields", "[quant][turboquant][oracle]") {
  const CacheShape shape{.head_dim = 128};
  const auto z = test::load_oracle("quantization.json", "Z_effective_bits");
  const quant::TurboQuant two{.key_bits = 3, .sketch = true};
  REQUIRE(test::bits_per_number(two.key_codec(shape), 128) ==
          z.at("TurboQuant prod b=3 (2b mse + 1b qjl), fp16 norm + fp16 residual norm").get<double>());
  REQUIRE(two.validate(shape) == Status::ok);
  REQUIRE(quant::TurboQuant{.key_bits = 1, .sketch = true}.validate(shape) == Status::invalid_argument);
  REQUIRE(quant::TurboQuant{.key_bits = 5, .sketch = true}.validate(shape) == Status::ok);
  const quant::TurboQuant three{.key_bits = 3, .value_bits = 3};
  REQUIRE(static_cast<double>(three.key_codec(shape).page_bytes(128, 128)) * 8 / (128 * 128) == 3.125);
  REQUIRE(three.validate(shape) == Status::ok);
  REQUIRE(quant::TurboQuant{.key_bits = 5}.validate(shape) == Status::invalid_argument);
  REQUIRE(quant::TurboQuant{.value_bits = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(quant::TurboQuant{.residual_window = -1}.validate(shape) == Status::invalid_argument);
  LevelCodes odd = codec_of(2, 64);
  REQUIRE(odd.valid(64));
  odd.level[1] = odd.level[0];
  REQUIRE_FALSE(odd.valid(64));
}

TEST_CASE("turboquant: levels are those of a side's own size of a head, fields reach the codecs", "[quant][turboquant]") {
  const CacheShape shape{.head_dim = 128, .value_dim = 64};
  const quant::TurboQuant usual{.key_bits = 3, .value_bits = 3}, normal{.key_bits = 3, .value_bits = 3, .normal_levels = true};
  REQUIRE(usual.key_codec(shape).codec.codec.level == prim::fit_levels(3, 128, false));
  REQUIRE(usual.value_codec(shape).codec.level == prim::fit_levels(3, 64, false));
  REQUIRE(normal.key_codec(shape).codec.codec.level == prim::fit_levels(3, 128, true));
  REQUIRE(normal.value_codec(shape).codec.level == prim::fit_levels(3, 64, true));
  REQUIRE(prim::fit_levels(3, 128, false) != prim::fit_levels(3, 64, false));
  REQUIRE(prim::fit_levels(3, 128, false) != prim::fit_levels(3, 128, true));
  const quant::TurboQuant one{.sketch = true}, two{.sketch = true, .seed = 2};
  REQUIRE(one.key_codec(shape).codec.sketch.seed != two.key_codec(shape).codec.sketch.seed);
  REQUIRE(one.key_codec(shape).codec.sketch.seed != one.key_codec(shape).transform.seed);
}

TEST_CASE("turboquant: a cache's error is that of its bits, whatever the head", "[quant][turboquant][cache]") {
  const auto given = GENERATE(table<index_t, index_t>({{64, 1}, {80, 3}, {96, 4}, {112, 7}, {128, 16}, {256, 2}}));
  const index_t dim = std::get<0>(given), heads = std::get<1>(given);
  const CacheShape shape{.q_heads = heads, .kv_heads = 1, .head_dim = dim};
  const auto error = [&](int bits) {
    test::CacheRig rig(shape, recipe(quant::TurboQuant{.key_bits = bits, .value_bits = bits, .residual_window = 8}), 220, 200);
    std::mt19937 random(3);
    test::Tokens t(shape, 200, random);
    for (index_t i = 0; i < 200; ++i) t.k[static_cast<std::size_t>(i * dim + 5)] *= 12.0f;  // one strong channel
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    std::vector<float> k(t.k.size()), v(t.v.size());
    REQUIRE(rig.cache.read(0, 0, 0, test::view2(k.data(), 200, dim), test::view2(v.data(), 200, dim)) == Status::ok);
    double off = 0, all = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(192 * dim); ++i) {
      off += std::pow(static_cast<double>(k[i] - t.k[i]), 2) + std::pow(static_cast<double>(v[i] - t.v[i]), 2);
      all += std::pow(static_cast<double>(t.k[i]), 2) + std::pow(static_cast<double>(t.v[i]), 2);
    }
    return off / all;
  };
  CAPTURE(dim, heads);
  REQUIRE(error(4) < 0.016);  // 0.0093 where all channels mix evenly
  REQUIRE(error(2) < 0.18);
  REQUIRE(error(2) > error(4));
}
