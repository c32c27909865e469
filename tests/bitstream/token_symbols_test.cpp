#include <limits>

#include <bitstream/streams.hpp>
#include <kvcondense/bitstream/token_symbols.hpp>
#include <support/fill.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Rows [tokens][channels] as one head.
struct Rows {
  std::vector<float> x;
  index_t tokens, channels;
  TensorView<const float, 3> view() const { return dense_view(x.data(), 1, tokens, channels); }
};

struct Scaled {
  std::vector<float> scales;
  Symbols symbols;
  index_t repaired = 0;
  int middle;
  index_t tokens;
  Scaled(TensorView<const float, 3> rows, int m, DType type = DType::f16)
      : scales(static_cast<std::size_t>(rows.extent[1])), symbols(static_cast<std::size_t>(rows.size())), middle(m), tokens(rows.extent[1]) {
    repaired = bitstream::scaled_symbols(rows, middle, type, scales, symbols);
  }
  int symbol(index_t c, index_t t) const { return symbols[static_cast<std::size_t>(c * tokens + t)]; }
  float value(index_t c, index_t t) const {
    return bitstream::step_value(symbol(c, t), middle, scales[static_cast<std::size_t>(t)] / static_cast<float>(middle));
  }
};

struct Delta {
  std::vector<float> scales, steps;
  Symbols anchors, deltas;
  index_t repaired = 0;
  bitstream::DeltaRule rule;
  index_t tokens, channels;
  Delta(const Rows& r, const bitstream::DeltaRule& how) : rule(how), tokens(r.tokens), channels(r.channels) {
    const index_t a = rule.anchors(tokens);
    scales.resize(static_cast<std::size_t>(a)), anchors.resize(static_cast<std::size_t>(a * channels));
    steps.resize(static_cast<std::size_t>(channels)), deltas.resize(static_cast<std::size_t>((tokens - a) * channels));
    repaired = bitstream::delta_symbols(r.view(), rule, scales, anchors, steps, deltas);
  }
  int anchor(index_t c, index_t a) const { return anchors[static_cast<std::size_t>(a * channels + c)] - 127; }
  int delta(index_t c, index_t t) const {
    const index_t a = t / rule.group, count = tokens - rule.anchors(tokens);
    return deltas[static_cast<std::size_t>(c * count + t - a - 1)] - rule.middle;
  }
  float value(index_t c, index_t t) const {
    const index_t a = t / rule.group;
    const float base = static_cast<float>(anchor(c, a)) * (scales[static_cast<std::size_t>(a)] / 127.0f);
    return t % rule.group == 0 ? base : base + static_cast<float>(delta(c, t)) * steps[static_cast<std::size_t>(c)];
  }
};

constexpr float inf = std::numeric_limits<float>::infinity(), bad = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST_CASE("token_symbols: symbols and values of the released code, oracle I1", "[bitstream][token_symbols]") {
  const auto oracle = load_oracle("quantization.json", "I1_cachegen_lmcache_codec");
  const Rows rows{floats(oracle.at("X")), 24, 3};
  const Scaled s(rows.view(), 3);
  const auto most = floats(oracle.at("token_maxabs"));
  REQUIRE(s.repaired == 0);
  for (index_t t = 0; t < 24; ++t) {
    REQUIRE(s.scales[static_cast<std::size_t>(t)] == most[static_cast<std::size_t>(t)]);
    for (index_t c = 0; c < 3; ++c) {
      REQUIRE(s.symbol(c, t) == oracle.at("channels")[static_cast<std::size_t>(c)].at("symbols")[static_cast<std::size_t>(t)].get<int>());
      REQUIRE(std::fabs(s.value(c, t) - rows.view()(0, t, c)) <= most[static_cast<std::size_t>(t)] / 6 * 1.0001f);
    }
  }
}

TEST_CASE("token_symbols: anchors and differences, oracle I2", "[bitstream][token_symbols]") {
  const auto oracle = load_oracle("quantization.json", "I2_cachegen_anchor_delta");
  const Rows rows{floats(oracle.at("X")), 10, 4};
  const Delta d(rows, {.group = 10, .width = oracle.at("bin_size").get<float>(), .middle = 31, .scales = DType::f32});
  REQUIRE(d.scales[0] / 127.0f == Approx(oracle.at("anchor_scale").get<double>()).epsilon(1e-5));
  const auto deviation = floats(oracle.at("delta_std")), out = floats(oracle.at("reconstruction"));
  for (index_t c = 0; c < 4; ++c) {
    const auto at = static_cast<std::size_t>(c);
    REQUIRE(d.anchor(c, 0) == oracle.at("anchor_codes")[at].get<int>());
    REQUIRE(d.steps[at] == Approx(0.5 * static_cast<double>(deviation[at])).epsilon(1e-5));
    for (index_t t = 1; t < 10; ++t) REQUIRE(d.delta(c, t) == oracle.at("delta_codes")[static_cast<std::size_t>(t - 1)][at].get<int>());
    for (index_t t = 0; t < 10; ++t) REQUIRE(d.value(c, t) == Approx(static_cast<double>(out[static_cast<std::size_t>(t * 4 + c)])).epsilon(1e-5));
  }
}

TEST_CASE("token_symbols: scales, anchors and steps are coded with as 16 bits hold them", "[bitstream][token_symbols]") {
  Rows rows{std::vector<float>(40 * 600), 40, 600};
  test::fill_normal(rows.x.data(), rows.x.size(), 11);
  const auto number = [&](index_t c, index_t t) { return rows.x[static_cast<std::size_t>(t * 600 + c)]; };
  const auto nearest = [](double y) { return static_cast<int>(std::nearbyint(y)); };
  // What symbols would be with `scale`, if it is off by more than rounding of a float.
  const Scaled s(rows.view(), 127);
  index_t other = 0;
  for (index_t t = 0; t < 40; ++t) {
    float most = 0;
    for (index_t c = 0; c < 600; ++c) most = std::max(most, std::fabs(number(c, t)));
    const auto stored = static_cast<double>(s.scales[static_cast<std::size_t>(t)]);
    REQUIRE(stored == static_cast<double>(static_cast<float>(half(most))));
    for (index_t c = 0; c < 600; ++c) {
      const double y = static_cast<double>(number(c, t)) * 127 / stored + 127;
      if (std::fabs(y - std::floor(y) - 0.5) > 1e-4) REQUIRE(s.symbol(c, t) == std::min(nearest(y), 254));
      other += s.symbol(c, t) != nearest(static_cast<double>(number(c, t)) * 127 / static_cast<double>(most) + 127);
    }
  }
  REQUIRE(other > 0);
  const Delta d(rows, {.group = 10, .width = 0.5f, .middle = 31});
  index_t anchors = 0, deltas = 0;
  for (index_t c = 0; c < 600; ++c) {
    std::vector<double> differences;
    for (index_t t = 0; t < 40; ++t) {
      const index_t a = t / 10;
      if (t % 10 == 0) {
        float most = 0;
        for (index_t i = 0; i < 600; ++i) most = std::max(most, std::fabs(number(i, t)));
        const double y = static_cast<double>(number(c, t)) * 127 / static_cast<double>(d.scales[static_cast<std::size_t>(a)]);
        if (std::fabs(y - std::floor(y) - 0.5) > 1e-4) REQUIRE(d.anchor(c, a) == std::clamp(nearest(y), -127, 127));
        anchors += d.anchor(c, a) != nearest(static_cast<double>(number(c, t)) * 127 / static_cast<double>(most));
        continue;
      }
      differences.push_back(static_cast<double>(number(c, t)) - static_cast<double>(d.value(c, a * 10)));
      const double y = differences.back() / static_cast<double>(d.steps[static_cast<std::size_t>(c)]);
      if (std::fabs(y - std::floor(y) - 0.5) > 1e-4) REQUIRE(d.delta(c, t) == nearest(y));
    }
    double sum = 0, square = 0;
    for (const double x : differences) sum += x / static_cast<double>(differences.size());
    for (const double x : differences) square += (x - sum) * (x - sum) / static_cast<double>(differences.size());
    const double step = 0.5 * std::sqrt(square);
    REQUIRE(d.steps[static_cast<std::size_t>(c)] == static_cast<float>(half(static_cast<float>(step))));
    for (std::size_t i = 0; i < differences.size(); ++i)
      deltas += d.delta(c, static_cast<index_t>(i / 9 * 10 + i % 9 + 1)) != nearest(differences[i] / step);
  }
  REQUIRE(anchors > 0);
  REQUIRE(deltas > 0);
}

TEST_CASE("token_symbols: NaN, infinities and zeros", "[bitstream][token_symbols]") {
  const Rows rows{{bad, 2.0f, -1.0f, inf, -inf,   //
                   0.0f, -0.0f, 0.0f, 0.0f, 0.0f,  //
                   bad, inf, -inf, bad, 0.0f},
                  3,
                  5};
  const int middle = GENERATE(1, 7, 15, 127);
  const Scaled s(rows.view(), middle);
  REQUIRE(s.repaired == 7);
  REQUIRE(s.scales == std::vector<float>{2.0f, 0.0f, 0.0f});
  REQUIRE(s.value(0, 0) == 0.0f);
  REQUIRE(s.value(1, 0) == 2.0f);
  REQUIRE(s.value(3, 0) == 2.0f);
  REQUIRE(s.value(4, 0) == -2.0f);
  for (index_t c = 0; c < 5; ++c)
    for (index_t t = 1; t < 3; ++t) REQUIRE(s.symbol(c, t) == middle);

  const Delta d(rows, {.group = 3});
  REQUIRE(d.repaired == 7);
  for (index_t c = 0; c < 5; ++c)
    for (index_t t = 0; t < 3; ++t) REQUIRE(std::fabs(d.value(c, t)) <= 2.01f);
  REQUIRE(d.value(3, 0) == 2.0f);
  REQUIRE(std::fabs(d.value(3, 1)) < 0.04f);
}

TEST_CASE("token_symbols: groups of ten tokens unless it is said, and the longest run of tokens", "[bitstream][token_symbols]") {
  REQUIRE(bitstream::DeltaRule{}.group == 10);
  Rows rows{std::vector<float>(4096), 4096, 1};
  for (std::size_t t = 0; t < 4096; ++t) rows.x[t] = t % 64 == 63 ? 8.0f : 2.0f;
  const Delta d(rows, {.group = 64});
  REQUIRE(d.repaired == 0);
  REQUIRE(d.anchor(0, 63) == 127);
  REQUIRE(std::fabs(d.value(0, 4095) - 8.0f) < 0.5f);
}

TEST_CASE("token_symbols: all 65,536 halves", "[bitstream][token_symbols]") {
  const int middle = GENERATE(5, 7, 15, 127);
  const index_t channels = GENERATE(1, 16, 1024);
  Rows rows{std::vector<float>(65536), 65536 / channels, channels};
  for (std::uint32_t i = 0; i < 65536; ++i) rows.x[i] = detail::half_value(static_cast<std::uint16_t>(i));
  const Scaled s(rows.view(), middle);
  REQUIRE(s.repaired == 2 * 1024);
  for (index_t t = 0; t < rows.tokens; ++t) {
    index_t ignored = 0;
    const float most = bitstream::token_most(rows.view(), t, ignored);
    REQUIRE(s.scales[static_cast<std::size_t>(t)] == most);
    for (index_t c = 0; c < channels; ++c) {
      const float x = bitstream::repaired_number(rows.view()(0, t, c), most);
      const float error = std::fabs(x - s.value(c, t)), bound = most / static_cast<float>(2 * middle) * 1.0001f;
      if (!(error <= bound && s.symbol(c, t) <= 2 * middle)) FAIL("token " << t << ", channel " << c << ": " << x << " is " << s.value(c, t));
    }
  }
}

TEST_CASE("token_symbols: scales at the ends of their types", "[bitstream][token_symbols]") {
  for (const float x : {1e-45f, 1e-38f, 1e-8f, 3e-8f, 6e-8f, 1e30f, 3.4e38f}) {
    const Rows rows{{x, -x, 0.0f, x / 2}, 1, 4};
    const Scaled narrow(rows.view(), 15), wide(rows.view(), 15, DType::f32);
    INFO(x);
    REQUIRE(narrow.scales[0] == (x < 2.9e-8f ? 0.0f : x > 65504.0f ? 65504.0f : static_cast<float>(half(x))));
    REQUIRE(wide.scales[0] == (x < 1e-36f ? 0.0f : x));
    if (x >= 1e-36f) REQUIRE(wide.value(0, 0) == Approx(static_cast<double>(x)));
    for (index_t c = 0; c < 4; ++c) REQUIRE(std::isfinite(narrow.value(c, 0)));
    const Rows pair{{x, -x, -x, x, x / 2, 0.0f}, 3, 2};
    for (const DType type : {DType::f16, DType::f32}) {
      const Delta d(pair, {.group = 10, .scales = type});
      for (index_t c = 0; c < 2; ++c) {
        REQUIRE(std::isfinite(d.steps[static_cast<std::size_t>(c)]));
        if (type == DType::f32 && x >= 1e-30f && x < 1e37f)
          for (index_t t = 0; t < 3; ++t) REQUIRE(std::fabs(d.value(c, t) - pair.view()(0, t, c)) <= x * 0.2f);  // half of a half deviation
      }
    }
  }
}

TEST_CASE("token_symbols: differences err by half a step and never clip", "[bitstream][token_symbols]") {
  const index_t tokens = GENERATE(1, 2, 9, 10, 11, 20, 21, 256);
  const index_t group = GENERATE(2, 10, 300);
  const float width = GENERATE(0.5f, 1.5f, 0.001f);
  const int middle = GENERATE(3, 31);
  Rows rows{std::vector<float>(static_cast<std::size_t>(tokens * 6)), tokens, 6};
  fill_normal(rows.x.data(), rows.x.size(), 7);
  for (index_t t = 0; t < tokens; ++t) {
    float* x = rows.x.data() + t * 6;
    x[1] = 1.0f + 0.001f * x[1];       // an offset
    x[2] = t == 0 ? 40.0f : x[2];      // an outlier as anchor
    x[3] = t == tokens - 1 ? 40.0f : x[3];
    x[4] = 3.0f;                       // a constant
    x[5] = t % 2 == 0 ? 2.0f : -2.0f;
  }
  const Delta d(rows, {.group = group, .width = width, .middle = middle});
  for (index_t c = 0; c < 6; ++c)
    for (index_t t = 0; t < tokens; ++t) {
      const bool anchor = t % group == 0;
      const float step = anchor ? d.scales[static_cast<std::size_t>(t / group)] / 127.0f : d.steps[static_cast<std::size_t>(c)];
      // Half a step, and the 2^-11 that storing the step cost, of at most `middle` steps.
      const float bound = step * (0.5f + static_cast<float>(anchor ? 127 : middle) * 0x1p-11f) * 1.01f + 1e-6f;
      INFO("channel " << c << ", token " << t);
      REQUIRE(std::fabs(d.value(c, t) - rows.view()(0, t, c)) <= bound);
    }
}

TEST_CASE("token_symbols: heads are channels one after the other", "[bitstream][token_symbols]") {
  std::vector<float> x(2 * 5 * 3);
  fill_normal(x.data(), x.size(), 3);
  Rows rows{std::vector<float>(x.size()), 5, 6};
  for (index_t h = 0; h < 2; ++h)
    for (index_t t = 0; t < 5; ++t)
      for (index_t d = 0; d < 3; ++d) rows.x[static_cast<std::size_t>(t * 6 + h * 3 + d)] = x[static_cast<std::size_t>((h * 5 + t) * 3 + d)];
  const Scaled heads(dense_view(static_cast<const float*>(x.data()), 2, 5, 3), 15), flat(rows.view(), 15);
  REQUIRE(heads.symbols == flat.symbols);
  REQUIRE(heads.scales == flat.scales);
}
