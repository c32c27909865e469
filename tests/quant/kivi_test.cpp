#include <cmath>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/backend/cpu/pack_bits.hpp>
#include <kvcondense/quant/kivi.hpp>

#include <support/fill.hpp>
#include <support/guarded.hpp>
#include <support/oracle.hpp>

// How a cache fills its windows by these rules is in tests/cache; here are codes, parameters and folding.

using namespace kvcondense;

namespace {

/// The worked example's stored codes: what a cache holds after its 35 tokens.
struct Example {
  using Codec = prim::PageCodec<Cpu, prim::GroupInt<2>>;

  nlohmann::json o = test::load_oracle("quantization.json", "C_kivi_attention");
  index_t n = o.at("params").at("n"), dim = o.at("params").at("D"), group = o.at("params").at("G");
  index_t coded_keys = o.at("K_quant_len"), coded_values = o.at("V_quant_len");
  std::vector<float> k = test::floats(o.at("K")), v = test::floats(o.at("V")), q = test::floats(o.at("q"));
  quant::Kivi<2> kivi{.group_size = group, .residual_window = o.at("params").at("R")};
  prim::GroupInt<2> key_codec = kivi.key_codec(), value_codec = kivi.value_codec();
  test::Guarded<std::byte> key_page{key_codec.page_bytes(32, dim)}, value_page{value_codec.page_bytes(32, dim)};
  prim::PageSpan keys{key_page.data(), 32, dim}, values{value_page.data(), 32, dim};

  Example() {
    REQUIRE(Codec::encode(key_codec, keys, 0, coded_keys, {k.data(), coded_keys, dim}) == 0);
    REQUIRE(Codec::encode(value_codec, values, 0, coded_values, {v.data(), coded_values, dim}) == 0);
  }
  float param(const prim::GroupInt<2>& codec, const test::Guarded<std::byte>& page, index_t i) const {
    std::uint16_t bits = 0;
    std::memcpy(&bits, page.data() + codec.params_at(32, dim) + 2 * i, 2);
    return kvcondense::detail::half_value(bits);
  }
  int code(const test::Guarded<std::byte>& page, index_t slot, index_t channel) const {
    return static_cast<int>(prim::DenseLe<2>{}.get(page.data() + slot * dim / 4, channel));
  }
};

std::size_t at(index_t row, index_t columns, index_t column) { return static_cast<std::size_t>(row * columns + column); }

/// Codes as the reference packs them: 32-bit words along the packed axis.
std::vector<std::uint32_t> words(const std::vector<std::uint8_t>& codes) {
  Context<Cpu> ctx;
  const prim::Lsb32<2> packing;
  std::vector<std::uint32_t> out(codes.size() / 16);
  REQUIRE(prim::PackBits<Cpu>::pack(ctx, packing, codes, std::as_writable_bytes(std::span(out))) == Status::ok);
  return out;
}

void require_words(const std::vector<std::uint32_t>& got, const nlohmann::json& want) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == std::stoul(want[i].get<std::string>(), nullptr, 16));
}

}  // namespace

TEST_CASE("kivi: codes, parameters and packed words are the worked example's", "[quant][kivi][oracle]") {
  Example e;
  for (index_t g = 0; g < e.coded_keys / e.group; ++g)
    for (index_t c = 0; c < e.dim; ++c) {
      const auto row = static_cast<std::size_t>(g), col = static_cast<std::size_t>(c);
      REQUIRE(e.param(e.key_codec, e.key_page, g * 2 * e.dim + c) == Approx(e.o.at("K_scale")[row][col].get<double>()).epsilon(1e-8));
      REQUIRE(e.param(e.key_codec, e.key_page, g * 2 * e.dim + e.dim + c) == Approx(e.o.at("K_min")[row][col].get<double>()).epsilon(1e-8));
    }
  for (index_t t = 0; t < e.coded_keys; ++t)
    for (index_t c = 0; c < e.dim; ++c)
      REQUIRE(e.code(e.key_page, t, c) == e.o.at("K_codes_token_major")[static_cast<std::size_t>(t)][static_cast<std::size_t>(c)]);
  for (index_t t = 0; t < e.coded_values; ++t) {
    const auto row = static_cast<std::size_t>(t);
    REQUIRE(e.param(e.value_codec, e.value_page, 2 * t) == Approx(e.o.at("V_scale")[row][0].get<double>()).epsilon(1e-8));
    REQUIRE(e.param(e.value_codec, e.value_page, 2 * t + 1) == Approx(e.o.at("V_min")[row][0].get<double>()).epsilon(1e-8));
    std::vector<std::uint8_t> codes;
    for (index_t c = 0; c < e.dim; ++c) codes.push_back(static_cast<std::uint8_t>(e.code(e.value_page, t, c)));
    REQUIRE(std::vector<int>(codes.begin(), codes.end()) == e.o.at("V_codes")[row].get<std::vector<int>>());
    require_words(words(codes), e.o.at("V_packed_u32_[token][word]")[row]);
  }
  for (index_t c = 0; c < e.dim; ++c) {  // the reference packs keys along tokens
    std::vector<std::uint8_t> codes;
    for (index_t t = 0; t < e.coded_keys; ++t) codes.push_back(static_cast<std::uint8_t>(e.code(e.key_page, t, c)));
    require_words(words(codes), e.o.at("K_packed_u32_[channel][word]")[static_cast<std::size_t>(c)]);
  }
  REQUIRE(e.key_page.ok());
  REQUIRE(e.value_page.ok());
}

TEST_CASE("kivi: codes are made with scales and minima as 16 bits hold them", "[quant][kivi]") {
  using Codec = prim::PageCodec<Cpu, prim::GroupInt<4>>;
  const auto codec = quant::Kivi<4>{}.key_codec();
  constexpr index_t slots = 32, dim = 128;
  std::vector<float> rows(slots * dim), back(rows.size());
  test::fill_normal(rows.data(), rows.size(), 4);
  for (float& x : rows) x += 3.0f;
  test::Guarded<std::byte> bytes(codec.page_bytes(slots, dim));
  const prim::PageSpan page{bytes.data(), slots, dim};
  REQUIRE(Codec::encode(codec, page, 0, slots, {rows.data(), slots, dim}) == 0);
  Codec::decode(codec, page, 0, slots, {back.data(), slots, dim});
  const auto param = [&](index_t i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + codec.params_at(slots, dim) + 2 * i, 2);
    return kvcondense::detail::half_value(bits);
  };
  index_t other_scale = 0, other_minimum = 0;
  for (index_t c = 0; c < dim; ++c) {
    float lo = 1e9f, hi = -1e9f;
    for (index_t t = 0; t < slots; ++t) lo = std::min(lo, rows[at(t, dim, c)]), hi = std::max(hi, rows[at(t, dim, c)]);
    const float scale = param(c), minimum = param(dim + c), exact = (hi - lo) / 15.0f;
    for (index_t t = 0; t < slots; ++t) {
      const double x = static_cast<double>(rows[at(t, dim, c)]);
      const auto code_with = [&](float s, float m) { return std::clamp(std::nearbyint((x - static_cast<double>(m)) / static_cast<double>(s)), 0.0, 15.0); };
      const double y = (x - static_cast<double>(minimum)) / static_cast<double>(scale);
      if (std::fabs(y - std::floor(y) - 0.5) > 1e-4)
        REQUIRE(static_cast<double>(back[at(t, dim, c)]) == Approx(code_with(scale, minimum) * static_cast<double>(scale) + static_cast<double>(minimum)).epsilon(1e-6));
      other_scale += code_with(exact, minimum) != code_with(scale, minimum), other_minimum += code_with(scale, lo) != code_with(scale, minimum);
    }
  }
  REQUIRE(other_scale > 0);
  REQUIRE(other_minimum > 0);
  REQUIRE(bytes.ok());
}

TEST_CASE("kivi: folding scales into the query is the worked example's", "[quant][kivi][oracle]") {
  Example e;
  const auto& fold = e.o.at("fold_K_group0");
  double zero = 0.0;
  for (index_t c = 0; c < e.dim; ++c) {
    const double q = e.q[static_cast<std::size_t>(c)];
    REQUIRE(q * static_cast<double>(e.param(e.key_codec, e.key_page, c)) ==
            Approx(fold.at("q_times_scale")[static_cast<std::size_t>(c)].get<double>()).margin(1e-8));
    zero += q * static_cast<double>(e.param(e.key_codec, e.key_page, e.dim + c));
  }
  REQUIRE(zero == Approx(fold.at("zero_correction").get<double>()).margin(1e-6));
}

TEST_CASE("kivi: attention over codes and exact rest is the worked example's", "[quant][kivi][oracle]") {
  Example e;
  std::vector<float> logits(static_cast<std::size_t>(e.n)), weights(logits.size()), out(static_cast<std::size_t>(e.dim));
  Example::Codec::scores(e.key_codec, e.keys, 0, e.coded_keys, {e.q.data(), 1, e.dim}, {logits.data(), 1, e.n});
  for (index_t t = e.coded_keys; t < e.n; ++t)
    for (index_t c = 0; c < e.dim; ++c) logits[static_cast<std::size_t>(t)] += e.q[static_cast<std::size_t>(c)] * e.k[at(t, e.dim, c)];
  float sum = 0.0f;
  for (float& l : logits) l /= std::sqrt(static_cast<float>(e.dim));
  for (std::size_t t = 0; t < logits.size(); ++t) {
    REQUIRE(logits[t] == Approx(e.o.at("logits_scaled")[t].get<double>()).margin(1e-5));
    weights[t] = std::exp(logits[t]);
    sum += weights[t];
  }
  for (std::size_t t = 0; t < weights.size(); ++t) {
    weights[t] /= sum;
    REQUIRE(weights[t] == Approx(e.o.at("probs")[t].get<double>()).margin(1e-6));
  }
  Example::Codec::accumulate(e.value_codec, e.values, 0, e.coded_values, {weights.data(), 1, e.n}, {out.data(), 1, e.dim});
  for (index_t t = e.coded_values; t < e.n; ++t)
    for (index_t c = 0; c < e.dim; ++c) out[static_cast<std::size_t>(c)] += weights[static_cast<std::size_t>(t)] * e.v[at(t, e.dim, c)];
  for (std::size_t c = 0; c < out.size(); ++c) REQUIRE(out[c] == Approx(e.o.at("output")[c].get<double>()).margin(1e-5));
}

TEST_CASE("kivi: a key's error moves its logit by at most half a step per channel", "[quant][kivi]") {
  const index_t dim = GENERATE(64, 80, 128);
  const quant::Kivi<2> kivi{.group_size = 32};
  const auto codec = kivi.key_codec();
  using Codec = prim::PageCodec<Cpu, prim::GroupInt<2>>;
  std::vector<float> k(static_cast<std::size_t>(64 * dim)), q(static_cast<std::size_t>(dim)), got(64), scale(256), offset(256);
  test::fill_normal(k.data(), k.size(), 1);
  test::fill_normal(q.data(), q.size(), 2);
  test::Guarded<std::byte> page(codec.page_bytes(64, dim));
  const prim::PageSpan span{page.data(), 64, dim};
  Codec::encode(codec, span, 0, 64, {k.data(), 64, dim});
  Codec::scores(codec, span, 0, 64, {q.data(), 1, dim}, {got.data(), 1, 64});
  for (index_t t = 0; t < 64; ++t) {
    prim::cpu::GroupPage<2>{codec, span}.read_params(t, scale.data(), offset.data());
    double exact = 0.0, bound = 0.0;
    for (index_t c = 0; c < dim; ++c) {
      const auto i = static_cast<std::size_t>(c);
      exact += static_cast<double>(q[i]) * static_cast<double>(k[at(t, dim, c)]);
      // Parameters in fp16 may cut the ends of a range by another thousandth of it.
      bound += std::abs(static_cast<double>(q[i])) * (0.5 * static_cast<double>(scale[i]) + 4e-3);
    }
    REQUIRE(std::abs(exact - static_cast<double>(got[static_cast<std::size_t>(t)])) <= bound);
  }
}

TEST_CASE("kivi: bits per number are the published ones", "[quant][kivi][oracle]") {
  const auto o = test::load_oracle("quantization.json", "Z_effective_bits");
  const auto bits = [](const auto& codec) { return static_cast<double>(codec.page_bytes(128, 128)) * 8.0 / (128.0 * 128.0); };
  const auto both = [&](const auto& kivi, const char* key) {
    REQUIRE(bits(kivi.key_codec()) == o.at(key).get<double>());
    REQUIRE(bits(kivi.value_codec()) == o.at(key).get<double>());
  };
  both(quant::Kivi<2>{.group_size = 32}, "KIVI b2 G32 fp16 scale+min");
  both(quant::Kivi<2>{.group_size = 64}, "KIVI b2 G64");
  both(quant::Kivi<2>{.group_size = 128}, "KIVI b2 G128");
  both(quant::Kivi<4>{.group_size = 32}, "KIVI b4 G32");
}

TEST_CASE("kivi: keys flush in blocks, values one by one", "[quant][kivi]") {
  constexpr quant::Kivi<2> kivi{.group_size = 32, .residual_window = 96, .sinks = 4};
  static_assert(kivi.key_flush().block == 96 && kivi.key_flush().keep == 0);
  static_assert(kivi.value_flush().block == 1 && kivi.value_flush().keep == 96);
  static_assert(kivi.key_codec().group_slots() == 32 && kivi.value_codec().group_slots() == 1);
  static_assert(quant::Kivi<2>{.keep_window = 16}.key_flush().keep == 16);
  REQUIRE(kivi.validate(CacheShape{.head_dim = 128}) == Status::ok);
}

TEST_CASE("kivi: groups that fit nothing are refused", "[quant][kivi]") {
  const auto refused = [](quant::Kivi<2> kivi, CacheShape shape = {.head_dim = 64}) {
    return kivi.validate(shape) == Status::invalid_argument;
  };
  REQUIRE_FALSE(refused({}));
  REQUIRE_FALSE(refused({}, {.head_dim = 80, .value_dim = 64}));  // keys group along tokens: any size
  REQUIRE(refused({}, {.head_dim = 64, .value_dim = 80}));
  REQUIRE(refused({.group_size = 0}));
  REQUIRE(refused({.group_size = -32}));
  REQUIRE(refused({.group_size = 24}, {.head_dim = 96}));          // does not divide a page
  REQUIRE(refused({.group_size = 32, .residual_window = 48}));     // a block is whole groups
  REQUIRE(refused({.group_size = 32, .residual_window = 0}));
  REQUIRE(refused({.sinks = -1}));
  REQUIRE(refused({.keep_window = -1}));
}

TEST_CASE("kivi: math reaches the codecs of keys and values", "[quant][kivi]") {
  const quant::Kivi<2> usual{}, byte{.math = prim::CodeMath::int8};
  REQUIRE((usual.key_codec().math == prim::CodeMath::int16 && usual.value_codec().math == prim::CodeMath::int16));
  REQUIRE((byte.key_codec().math == prim::CodeMath::int8 && byte.value_codec().math == prim::CodeMath::int8));
}
