#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/boosted_int.hpp>
#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/prim/pack_bits.hpp>
#include <kvcondense/quant/kitty.hpp>

#include <quant/codec_page.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::BoostedInt;
using quant::Kitty;

namespace {

using KeyPage = test::CodecPage<BoostedInt<2, 2>>;

std::uint32_t low_of(const KeyPage& p, index_t slot, index_t channel) {
  return prim::DenseLe<2>{}.get(p.bytes.data() + slot * p.codec.low_bytes(p.dim), channel);
}
std::uint32_t high_of(const KeyPage& p, index_t slot, index_t rank) {
  return prim::DenseLe<2>{}.get(p.bytes.data() + p.codec.high_at(p.slots, p.dim) + slot * p.codec.high_bytes(p.dim), rank);
}
int rank_of(const KeyPage& p, index_t slot, index_t channel) {
  const index_t at = p.codec.params_at(p.slots, p.dim) + slot / p.codec.group_size * p.codec.group_bytes(p.dim);
  return static_cast<int>(p.bytes[at + 4 * p.dim + channel]);
}

/// Four codes of two bits in a byte, the first lowest: how the reference packs a channel along its tokens.
template <class F>
int along_tokens(F&& code) {
  std::uint32_t byte = 0;
  for (index_t t = 0; t < 4; ++t) byte |= code(t) << 2 * t;
  return static_cast<int>(byte);
}

int from_hex(const nlohmann::json& text) { return std::stoi(text.get<std::string>(), nullptr, 16); }

}  // namespace

TEST_CASE("kitty: ranks, parameters, codes and planes of a page are the worked example's", "[quant][kitty][oracle]") {
  const auto o = test::load_oracle("quantization.json", "S_kitty_page");
  const Kitty kitty{.page = 4, .boost = 0.25f};
  KeyPage page(kitty.key_codec(), test::floats(o.at("K_page_[token][channel]")), 8);
  const index_t params = page.codec.params_at(4, 8);
  REQUIRE(page.codec.boosted(8) == 2);
  for (index_t c = 0; c < 8; ++c) {
    const auto i = static_cast<std::size_t>(c);
    REQUIRE(rank_of(page, 0, c) == o.at("dense_to_sparse_map")[i].get<int>());
    REQUIRE(page.half_at(params + 2 * c) == Approx(o.at("scale_fp16")[i].get<double>()).epsilon(1e-7));
    REQUIRE(page.half_at(params + 16 + 2 * c) == Approx(o.at("min_fp16")[i].get<double>()).epsilon(1e-7));
    for (index_t t = 0; t < 4; ++t) {
      const int rank = rank_of(page, 0, c);
      const std::uint32_t code = low_of(page, t, c) | (rank < 2 ? high_of(page, t, rank) << 2 : 0u);
      REQUIRE(code == o.at("codes")[static_cast<std::size_t>(t)][i].get<std::uint32_t>());
    }
    REQUIRE(along_tokens([&](index_t t) { return low_of(page, t, c); }) == from_hex(o.at("low_plane_bytes_[channel]")[i]));
  }
  for (index_t k = 0; k < 2; ++k)
    REQUIRE(along_tokens([&](index_t t) { return high_of(page, t, k); }) ==
            from_hex(o.at("high_plane_bytes_[boost_rank]")[static_cast<std::size_t>(k)]));
}

TEST_CASE("kitty: attention over planes equals attention over what they decode to", "[quant][kitty]") {
  const index_t dim = GENERATE(1, 7, 64, 80, 96, 112, 128, 256);
  for (const index_t page : {16, 32, 128})
    for (const float boost : {0.0f, 0.125f, 0.25f, 1.0f}) {
      KeyPage keys(Kitty{.page = page, .boost = boost}.key_codec(), test::normal_rows(2 * page, dim, 3), dim);
      CAPTURE(page, boost);
      test::require_folds(keys);
      test::require_same_alone(keys);
    }
  test::CodecPage values(Kitty{}.value_codec(), test::normal_rows(40, dim, 4), dim);
  test::require_folds(values);
}

TEST_CASE("kitty: other widths of the planes", "[quant][kitty]") {
  test::CodecPage a(BoostedInt<1, 3>{.group_size = 16, .boost = 0.3f}, test::normal_rows(48, 80, 3), 80);
  test::require_folds(a);
  test::CodecPage b(BoostedInt<4, 4>{.group_size = 16, .boost = 0.1f}, test::normal_rows(48, 96, 3), 96);
  test::require_folds(b);
}

TEST_CASE("kitty: nothing boosted is KIVI's keys, everything boosted is four bits", "[quant][kitty]") {
  const std::vector<float> x = test::normal_rows(64, 96, 5);
  const auto plain = [&]<int Bits>() {
    return test::CodecPage(prim::GroupInt<Bits>{.axis = prim::GroupAxis::channel, .group_size = 32, .rounding = prim::Rounding::half_up}, x, 96)
        .decoded();
  };
  REQUIRE(KeyPage(Kitty{.page = 32, .boost = 0.0f}.key_codec(), x, 96).decoded() == plain.operator()<2>());
  REQUIRE(KeyPage(Kitty{.page = 32, .boost = 1.0f}.key_codec(), x, 96).decoded() == plain.operator()<4>());
}

TEST_CASE("kitty: boosted channels are the strongest of their page, and err by half their finer step", "[quant][kitty]") {
  constexpr index_t dim = 80, slots = 64, each = 32;
  std::vector<float> x = test::normal_rows(slots, dim, 6);
  for (std::size_t i = 0; i < x.size(); ++i)  // other strong channels in the second page
    if (i % dim % 10 == (i < each * dim ? 3u : 7u)) x[i] *= 6.0f;
  KeyPage page(Kitty{.page = each, .boost = 0.1f}.key_codec(), x, dim);
  const auto back = page.decoded();
  for (index_t g = 0; g < 2; ++g)
    for (index_t c = 0; c < dim; ++c) {
      const bool strong = rank_of(page, g * each, c) < 8;
      REQUIRE(strong == (c % 10 == (g == 0 ? 3 : 7)));
      double lo = INFINITY, hi = -INFINITY, worst = 0.0;
      for (index_t t = g * each; t < (g + 1) * each; ++t) {
        const auto i = static_cast<std::size_t>(t * dim + c);
        lo = std::min(lo, static_cast<double>(x[i])), hi = std::max(hi, static_cast<double>(x[i]));
        worst = std::max(worst, std::abs(static_cast<double>(x[i]) - static_cast<double>(back[i])));
      }
      REQUIRE(worst <= (hi - lo) / (strong ? 15 : 3) * 0.5 + (std::abs(lo) + std::abs(hi)) * 0x1p-10);
    }
}

TEST_CASE("kitty: of equally strong channels the first is boosted, and halves go up", "[quant][kitty]") {
  // Channels 1 and 2 are as strong as each other, one channel is boosted; channels 0 and 3 have steps of 1.
  const std::vector<float> x{0.0f, 30.0f, -30.0f, 0.0f, 0.5f, 0.0f, 0.0f, 0.5f, 1.5f, 5.0f, -5.0f, 2.5f, 3.0f, 1.0f, -1.0f, 3.0f};
  KeyPage page(Kitty{.page = 4, .boost = 0.25f}.key_codec(), x, 4);
  REQUIRE((rank_of(page, 0, 1) == 0 && rank_of(page, 0, 2) == 1 && rank_of(page, 0, 0) == 1));
  for (index_t t = 0; t < 4; ++t) {
    const std::uint32_t first[] = {0, 1, 2, 3}, last[] = {0, 1, 3, 3};
    REQUIRE(low_of(page, t, 0) == first[t]);
    REQUIRE(low_of(page, t, 3) == last[t]);
  }
}

TEST_CASE("kitty: the error of logits falls with the boosted part as in the published trend", "[quant][kitty][oracle]") {
  const auto o = test::load_oracle("quantization.json", "Y2_trends");
  constexpr index_t tokens = 1024, dim = 128;
  std::vector<float> k = test::normal_rows(tokens, dim, 8), q = test::normal_rows(16, dim, 9);
  for (std::size_t i = 0; i < k.size(); ++i)
    if (i % dim % 8 == 5) k[i] *= 6.0f;  // 16 strong channels
  const auto error = [&](float boost) {
    KeyPage page(Kitty{.boost = boost}.key_codec(), k, dim);
    std::vector<float> got(16 * tokens);
    KeyPage::Codec::scores(page.codec, page.span(), 0, tokens, {q.data(), 16, dim}, {got.data(), 16, tokens});
    double far = 0.0, size = 0.0;
    for (std::size_t r = 0; r < 16; ++r)
      for (std::size_t t = 0; t < tokens; ++t) {
        double want = 0.0;
        for (std::size_t c = 0; c < dim; ++c) want += static_cast<double>(q[r * dim + c]) * static_cast<double>(k[t * dim + c]);
        const double d = want - static_cast<double>(got[r * tokens + t]);
        far += d * d, size += want * want;
      }
    return std::sqrt(far / size);
  };
  // .500, .224, .211, .100 for pages of 128: only 16 rows of queries here, so within a tenth.
  REQUIRE(error(0.0f) == Approx(0.500).epsilon(0.1));
  REQUIRE(error(0.125f) == Approx(0.224).epsilon(0.1));
  REQUIRE(error(0.25f) == Approx(0.211).epsilon(0.1));
  REQUIRE(error(1.0f) == Approx(0.100).epsilon(0.1));
}

TEST_CASE("kitty: every half number, constant channels and numbers that are none", "[quant][kitty]") {
  KeyPage all(Kitty{}.key_codec(), test::all_halves(64), 64);
  REQUIRE(all.repaired == 2 * 1024);
  for (const float v : all.decoded()) REQUIRE(std::isfinite(v));
  KeyPage alone(Kitty{.page = 1, .boost = 0.5f}.key_codec(), test::all_halves(64), 64);  // constant groups: exact
  std::size_t wrong = 0;
  const auto back = alone.decoded();
  for (std::size_t i = 0; i < back.size(); ++i) wrong += back[i] != (std::isfinite(alone.rows[i]) ? alone.rows[i] : 0.0f);
  REQUIRE(wrong == 0);

  std::vector<float> x = test::normal_rows(64, 64, 9);
  const Kitty kitty{.page = 32, .boost = 0.25f};
  KeyPage clean(kitty.key_codec(), x, 64);
  x[5 * 64 + 20] = std::numeric_limits<float>::quiet_NaN();
  x[6 * 64 + 20] = std::numeric_limits<float>::infinity();
  x[7 * 64 + 21] = -std::numeric_limits<float>::infinity();
  x[8 * 64 + 21] = 3e38f;
  KeyPage bad(kitty.key_codec(), x, 64);
  REQUIRE(bad.repaired == 4);
  const auto a = clean.decoded(), b = bad.decoded();
  for (const float v : b) REQUIRE(std::isfinite(v));
  for (std::size_t i = 32 * 64; i < x.size(); ++i) REQUIRE(a[i] == b[i]);  // the other page is as it was
  KeyPage none(kitty.key_codec(), std::vector<float>(32 * 64, std::numeric_limits<float>::quiet_NaN()), 64);
  for (const float v : none.decoded()) REQUIRE(v == 0.0f);
}

TEST_CASE("kitty: coding page by page equals coding all at once", "[quant][kitty]") {
  KeyPage all(Kitty{.page = 16}.key_codec(), test::normal_rows(64, 80, 13), 80), pieces(all.codec, test::normal_rows(64, 80, 14), 80);
  for (index_t at = 0; at < 64; at += 16)
    KeyPage::Codec::encode(pieces.codec, pieces.span(), at, 16, {all.rows.data() + at * 80, 16, 80});
  REQUIRE(std::memcmp(all.bytes.data(), pieces.bytes.data(), all.bytes.size()) == 0);
}

TEST_CASE("kitty: bits per number are the published ones", "[quant][kitty][oracle]") {
  const auto o = test::load_oracle("quantization.json", "Z_effective_bits");
  REQUIRE(test::bits_per_number(Kitty{}.key_codec(), 128) ==
          o.at("Kitty K b2 + 12.5% boosted to 4, page128, fp16 scale+min, map byte per channel").get<double>());
  REQUIRE(test::bits_per_number(Kitty{.boost = 0.25f}.key_codec(), 128) == o.at("Kitty K b2 + 25% boosted").get<double>());
  REQUIRE(test::bits_per_number(Kitty{}.value_codec(), 128) == o.at("Kitty V b2 per token D128").get<double>());
}

TEST_CASE("kitty: keys flush in pages, values behind a buffer, and settings that fit nothing are refused", "[quant][kitty]") {
  static_assert(Kitty{}.key_flush().block == 128 && Kitty{}.key_flush().keep == 0);
  static_assert(Kitty{}.value_flush().block == 128 && Kitty{}.value_flush().keep == 128 && Kitty{}.sinks == 32);
  static_assert(Kitty{.keep_window = 9}.key_flush().keep == 9);
  const auto refused = [](const Kitty& k) { return k.validate({.head_dim = 80}) == Status::invalid_argument; };
  for (const index_t dim : {1, 64, 80, 96, 112, 128, 256}) REQUIRE(Kitty{}.validate({.head_dim = dim}) == Status::ok);
  for (const index_t page : {-8, 0, 24, 512}) REQUIRE(refused({.page = page}));
  for (const float boost : {-0.1f, 1.5f, std::numeric_limits<float>::quiet_NaN()}) REQUIRE(refused({.boost = boost}));
  REQUIRE(refused({.buffer = -1}));
  REQUIRE(refused({.keep_window = -1}));
  REQUIRE(refused({.sinks = -1}));
  REQUIRE(Kitty{}.key_codec().fingerprint() != Kitty{.boost = 0.25f}.key_codec().fingerprint());
  REQUIRE(Kitty{}.key_codec().fingerprint() != Kitty{.page = 64}.key_codec().fingerprint());
}
