#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/bipolar_int.hpp>
#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/prim/pack_bits.hpp>
#include <kvcondense/quant/bipolar_int.hpp>

#include <quant/codec_page.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::GroupForm;

namespace {

template <int Bits>
using KeyPage = test::CodecPage<prim::BipolarInt<Bits>>;

constexpr GroupForm forms[] = {GroupForm::minimum, GroupForm::mid_rise, GroupForm::symmetric, GroupForm::float_zero,
                               GroupForm::integer_zero};

/// Codes as planes of bits, from the first plane on.
prim::cpu::PlaneWords planes_of(const std::vector<std::uint32_t>& codes, int bits) {
  prim::cpu::PlaneWords words{};
  for (int p = 0; p < bits; ++p)
    for (std::size_t c = 0; c < codes.size(); ++c) words.word[0][p] |= std::uint64_t{codes[c] >> p & 1u} << c;
  return words;
}

/// A query as it is coded, in double: odd multiples of the largest of its group / (2^bits - 1).
std::vector<double> coded_query(const float* q, index_t dim, index_t group, index_t bits) {
  std::vector<double> out;
  const double last = static_cast<double>((1 << bits) - 1);
  for (index_t from = 0; from < dim; from += group) {
    float top = 0.0f;
    for (index_t c = from; c < from + group; ++c) top = std::max(top, std::abs(q[c]));
    const float unit = top / static_cast<float>(last);
    for (index_t c = from; c < from + group; ++c) {
      const double word = std::nearbyint(static_cast<double>(q[c] * (0.5f / unit) + 0.5f * static_cast<float>(last)));
      out.push_back((2.0 * std::min(std::max(word, 0.0), last) - last) * static_cast<double>(unit));
    }
  }
  return out;
}

}  // namespace

TEST_CASE("bipolar_int: words, planes and the product are the worked example's", "[quant][bipolar_int][oracle]") {
  const auto o = test::load_oracle("quantization.json", "J_bipolar_int");
  for (const auto& row : o.at("table_3bit")) {
    const auto word = static_cast<std::uint32_t>(std::stoi(row.at("bits").get<std::string>(), nullptr, 2));
    REQUIRE(prim::bipolar_value(3, word) == row.at("bipolar_value").get<int>());
    REQUIRE(prim::bipolar_value(3, word) == 2 * row.at("signed_int_equiv").get<int>() + 1);
  }
  const auto& dot = o.at("dot");
  const auto a = dot.at("a_codes_2bit").get<std::vector<std::uint32_t>>(), w = dot.at("w_codes_3bit").get<std::vector<std::uint32_t>>();
  for (std::size_t i = 0; i < a.size(); ++i) {
    REQUIRE(prim::bipolar_value(2, a[i]) == dot.at("a_values")[i].get<int>());
    REQUIRE(prim::bipolar_value(3, w[i]) == dot.at("w_values")[i].get<int>());
  }
  const auto a_planes = planes_of(a, 2), w_planes = planes_of(w, 3);
  std::int32_t differ = 0;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j) {
      const auto& want = dot.at("planes").at("a" + std::to_string(i) + "_w" + std::to_string(j));
      const int count = std::popcount(a_planes.word[0][i] ^ w_planes.word[0][j]);
      REQUIRE(count == want.at("popcount_xor").get<int>());
      REQUIRE(static_cast<int>(a.size()) - 2 * count == want.at("dot").get<int>());
      differ += count << (i + j);
    }
  REQUIRE(prim::cpu::differing_bits<2>(a_planes, w_planes, 3, 0, 1) == differ);
  REQUIRE(prim::bipolar_dot(8, 2, 3, differ) == dot.at("dot").get<int>());
}

TEMPLATE_TEST_CASE_SIG("bipolar_int: a page has the numbers of GroupInt, its rows as planes", "[quant][bipolar_int]",
                       ((int Bits), Bits), 1, 2, 3, 4, 5, 6, 7, 8) {
  const index_t dim = GENERATE(8, 64, 80, 96, 112, 128, 256);
  const std::vector<float> x = test::normal_rows(20, dim, 3);
  for (const GroupForm form : forms)
    for (const index_t group : {index_t{0}, index_t{8}, dim / 2}) {
      const prim::BipolarInt<Bits> codec{.group_size = group, .form = form};
      if (!codec.valid(dim)) continue;
      KeyPage<Bits> page(codec, x, dim);
      test::CodecPage plain(codec.numbers(), x, dim);
      CAPTURE(dim, group, static_cast<int>(form));
      REQUIRE(page.decoded() == plain.decoded());
      const auto params = static_cast<std::size_t>(codec.numbers().params_at(20, dim));
      REQUIRE(page.bytes.size() == plain.bytes.size());
      REQUIRE(std::memcmp(page.bytes.data() + params, plain.bytes.data() + params, page.bytes.size() - params) == 0);
      bool same = true;
      for (index_t t = 0; t < 20; ++t)
        for (index_t c = 0; c < dim; ++c) {
          std::uint32_t code = 0;
          for (int p = 0; p < Bits; ++p)
            code |= prim::DenseLe<1>{}.get(page.bytes.data() + t * dim * Bits / 8 + p * dim / 8, c) << p;
          same = same && code == prim::DenseLe<Bits>{}.get(plain.bytes.data() + t * dim * Bits / 8, c);
        }
      REQUIRE(same);
    }
}

TEMPLATE_TEST_CASE_SIG("bipolar_int: with exact queries, attention over planes equals attention over what they decode to",
                       "[quant][bipolar_int]", ((int Bits), Bits), 1, 2, 3, 8) {
  const index_t dim = GENERATE(8, 64, 80, 96, 112, 128, 256);
  for (const GroupForm form : forms)
    for (const index_t group : {index_t{0}, index_t{8}, index_t{16}, dim / 2}) {
      const prim::BipolarInt<Bits> codec{.group_size = group, .form = form, .query_bits = 0};
      if (!codec.valid(dim)) continue;
      KeyPage<Bits> page(codec, test::normal_rows(40, dim, 3), dim);
      test::require_folds(page);
      test::require_same_alone(page);
    }
}

TEMPLATE_TEST_CASE_SIG("bipolar_int: counted scores are products of coded queries, and exact ones with the middle",
                       "[quant][bipolar_int]", ((int Bits), Bits), 1, 2, 3, 4, 8) {
  const index_t dim = GENERATE(8, 64, 80, 96, 112, 128, 256), rows = GENERATE(1, 7, 16, 33);
  constexpr index_t slots = 21;
  for (const GroupForm form : {GroupForm::minimum, GroupForm::mid_rise})
    for (const index_t query_bits : {4, 6, 8})
      for (const index_t size : {index_t{0}, index_t{8}, dim / 2}) {
        const prim::BipolarInt<Bits> codec{.group_size = size, .form = form, .query_bits = query_bits};
        if (!codec.valid(dim)) continue;
        std::vector<float> x = test::normal_rows(slots, dim, 3), q = test::normal_rows(rows, dim, 4);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] += form == GroupForm::minimum ? 2.0f : 0.0f;
        KeyPage<Bits> page(codec, x, dim);
        const std::vector<float> back = page.decoded();
        std::vector<float> scale(256), base(256);
        test::Guarded<float> got(static_cast<std::size_t>(rows * slots), -7.0f);
        KeyPage<Bits>::Codec::scores(codec, page.span(), 0, slots, {q.data(), rows, dim}, {got.data(), rows, slots});
        const index_t group = size == 0 ? dim : size;
        double worst = 0.0, off = 0.0;
        for (index_t t = 0; t < slots; ++t) {
          const prim::cpu::GroupPage<Bits, prim::cpu::PlaneRows<Bits>> from{codec.numbers(), page.span()};
          from.read_params(t, scale.data(), base.data());
          from.fold_offsets(scale.data(), base.data(), dim / group);
          for (index_t r = 0; r < rows; ++r) {
            const float* exact = q.data() + r * dim;
            const std::vector<double> coded = coded_query(exact, dim, group, query_bits);
            double want = 0.0, plain = 0.0, magnitude = 0.0, bound = 0.0;
            for (index_t c = 0; c < dim; ++c) {
              const auto j = static_cast<std::size_t>(c / group);
              const double step = static_cast<double>(scale[j]), middle = static_cast<double>(base[j]) + 0.5 * ((1 << Bits) - 1) * step;
              const auto v = static_cast<double>(back[static_cast<std::size_t>(t * dim + c)]), e = static_cast<double>(exact[c]);
              const double w = coded[static_cast<std::size_t>(c)];
              want += w * (v - middle) + e * middle;
              plain += e * v;
              magnitude += std::abs(w * (v - middle)) + std::abs(e * middle);
              bound += std::abs(w - e) * std::abs(v - middle);
            }
            const auto g = static_cast<double>(got[r * slots + t]);
            worst = std::max(worst, std::abs(g - want) / magnitude);
            off = std::max(off, (std::abs(g - plain) - bound) / magnitude);
          }
        }
        CAPTURE(dim, rows, query_bits, size, static_cast<int>(form));
        REQUIRE(worst < 2e-6);
        REQUIRE(off < 2e-6);
        REQUIRE(got.ok());
        test::require_same_alone(page);
      }
}

TEST_CASE("bipolar_int: a coded query errs by its unit at most, and constant keys multiply exactly", "[quant][bipolar_int]") {
  const std::vector<float> q = test::normal_rows(1, 128, 5);
  for (const index_t bits : {4, 5, 6, 7, 8}) {
    const auto coded = coded_query(q.data(), 128, 32, bits);
    for (index_t from = 0; from < 128; from += 32) {
      double top = 0.0;
      for (index_t c = from; c < from + 32; ++c) top = std::max(top, std::abs(static_cast<double>(q[static_cast<std::size_t>(c)])));
      for (index_t c = from; c < from + 32; ++c)
        REQUIRE(std::abs(coded[static_cast<std::size_t>(c)] - static_cast<double>(q[static_cast<std::size_t>(c)])) <=
                1.0001 * top / ((1 << bits) - 1));
    }
    KeyPage<2> page({.group_size = 32, .query_bits = bits}, std::vector<float>(128, 1.5f), 128);
    float got = 0.0f;
    double want = 0.0;
    for (const float v : q) want += 1.5 * static_cast<double>(v);
    KeyPage<2>::Codec::scores(page.codec, page.span(), 0, 1, {q.data(), 1, 128}, {&got, 1, 1});
    REQUIRE(got == Approx(want).epsilon(1e-5).margin(1e-4));
  }
  // Queries of zeros, and of the smallest numbers.
  for (const float size : {0.0f, 1e-42f}) {
    const std::vector<float> none(128, size);
    KeyPage<3> page({.group_size = 32}, test::normal_rows(1, 128, 6), 128);
    float got = -7.0f;
    KeyPage<3>::Codec::scores(page.codec, page.span(), 0, 1, {none.data(), 1, 128}, {&got, 1, 1});
    REQUIRE(std::abs(got) <= 1e-38f);
  }
}

TEST_CASE("bipolar_int: without an offset, numbers are odd multiples of half a step", "[quant][bipolar_int]") {
  KeyPage<2> page({.form = GroupForm::mid_rise}, {3.0f, -3.0f, 1.1f, -0.9f, 0.1f, -0.1f, 2.2f, -1.9f}, 8);
  REQUIRE(page.decoded() == std::vector<float>{3, -3, 1, -1, 1, -1, 3, -1});  // the step is 2
  KeyPage<1> sign({.form = GroupForm::mid_rise}, {3.0f, -3.0f, 1.0f, -1.0f, 0.5f, -0.5f, 2.0f, -2.0f}, 8);
  REQUIRE(sign.decoded() == std::vector<float>{3, -3, 3, -3, 3, -3, 3, -3});
}

TEST_CASE("bipolar_int: every half number, moved slots and numbers that are none", "[quant][bipolar_int]") {
  KeyPage<2> all({.group_size = 32}, test::all_halves(64), 64);
  REQUIRE(all.repaired == 2 * 1024);
  for (const float v : all.decoded()) REQUIRE(std::isfinite(v));
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  KeyPage<4> bad({}, {0.0f, 3.0f, nan, inf, -inf, 1.0f, 2.0f, 3e38f, nan, nan, nan, nan, nan, inf, -inf, nan}, 8);
  REQUIRE(bad.repaired == 4 + 8);
  const auto got = bad.decoded();
  REQUIRE((got[2] == got[0] && got[3] == got[1] && got[4] == got[0] && got[7] == got[1]));
  for (std::size_t i = 8; i < 16; ++i) REQUIRE(got[i] == 0.0f);

  KeyPage<3> a({.group_size = 16}, test::normal_rows(16, 80, 11), 80), b(a.codec, test::normal_rows(8, 80, 12), 80);
  const auto last = a.decoded(15, 1), other = b.decoded(3, 1);
  KeyPage<3>::Codec::move(a.codec, a.span(), 2, a.span(), 15);
  KeyPage<3>::Codec::move(a.codec, a.span(), 3, b.span(), 3);
  KeyPage<3>::Codec::move(a.codec, a.span(), 4, a.span(), 4);
  REQUIRE(a.decoded(2, 1) == last);
  REQUIRE(a.decoded(3, 1) == other);
  REQUIRE(a.bytes.ok());
}

TEST_CASE("bipolar_int: bits per number, and settings that fit nothing are refused", "[quant][bipolar_int]") {
  using quant::BipolarInt;
  REQUIRE(test::bits_per_number(BipolarInt<2>{}.key_codec(), 128) == 3.0);
  REQUIRE(test::bits_per_number(BipolarInt<2>{.group_size = 0}.key_codec(), 128) == 2.25);
  REQUIRE(test::bits_per_number(BipolarInt<3>{.group_size = 0, .form = GroupForm::mid_rise}.key_codec(), 128) == 3.125);
  static_assert(BipolarInt<2>{}.key_flush().block == 1 && BipolarInt<2>{.residual_window = 9}.value_flush().keep == 9);
  const auto refused = [](const BipolarInt<2>& b, index_t dim = 64) {
    return b.validate({.head_dim = dim}) == Status::invalid_argument;
  };
  for (const index_t dim : {64, 96, 128, 256}) REQUIRE_FALSE(refused({}, dim));
  REQUIRE_FALSE(refused({.group_size = 0}, 80));
  REQUIRE_FALSE(refused({.group_size = 16}, 112));
  REQUIRE_FALSE(refused({.query_bits = 0}));
  for (const index_t dim : {80, 1, 65}) REQUIRE(refused({}, dim));
  REQUIRE(refused({.group_size = 0}, 65));
  for (const index_t group : {-8, 4, 12, 48}) REQUIRE(refused({.group_size = group}));
  for (const index_t bits : {-1, 1, 3, 9, 16}) REQUIRE(refused({.query_bits = bits}));
  REQUIRE(BipolarInt<1>{.form = GroupForm::symmetric}.validate({}) == Status::invalid_argument);
  REQUIRE(refused({.residual_window = -1}));
  REQUIRE(refused({.sinks = -1}));
  REQUIRE(BipolarInt<2>{}.key_codec().fingerprint() != BipolarInt<2>{}.value_codec().fingerprint());
  REQUIRE(BipolarInt<2>{}.key_codec().fingerprint() != BipolarInt<2>{.query_bits = 4}.key_codec().fingerprint());
}
