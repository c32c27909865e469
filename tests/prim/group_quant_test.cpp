#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/prim/group_quant.hpp>

#include <support/fill.hpp>
#include <support/oracle.hpp>

// The scalar quantizers as pure functions; how they fill pages is in group_int_codec_test.cpp.

using namespace kvcondense;
using namespace kvcondense::prim;

namespace {

constexpr GroupForm forms[] = {GroupForm::minimum, GroupForm::integer_zero, GroupForm::float_zero, GroupForm::symmetric,
                               GroupForm::mid_rise};
constexpr ParamType types[] = {ParamType::f16, ParamType::bf16, ParamType::f32};

struct Coded {
  GroupParams params;
  std::vector<int> codes;
  std::vector<float> values;
};

template <int Bits, GroupForm Form>
void code_group(std::span<const float> x, ParamType type, Coded& c) {
  GroupRange range;
  for (const float v : x) range.include(v);
  c.params = fit_group(Form, Bits, type, range);
  c.codes.clear(), c.values.clear();
  for (const float v : x) {
    c.codes.push_back(code_of<Bits, Form, Rounding::half_even>(v, c.params.offset, c.params.inverse));
    c.values.push_back(value_of<Bits, Form>(c.codes.back(), c.params.scale, c.params.offset));
  }
}

template <int Bits>
void code_group(GroupForm form, std::span<const float> x, ParamType type, Coded& c) {
  switch (form) {
    case GroupForm::minimum: return code_group<Bits, GroupForm::minimum>(x, type, c);
    case GroupForm::integer_zero: return code_group<Bits, GroupForm::integer_zero>(x, type, c);
    case GroupForm::float_zero: return code_group<Bits, GroupForm::float_zero>(x, type, c);
    case GroupForm::symmetric: return code_group<Bits, GroupForm::symmetric>(x, type, c);
    case GroupForm::mid_rise: return code_group<Bits, GroupForm::mid_rise>(x, type, c);
  }
}

template <int Bits>
Coded code_group(GroupForm form, const std::vector<float>& x, ParamType type) {
  Coded c;
  code_group<Bits>(form, x, type, c);
  return c;
}

/// What the largest and smallest stored code stand for, in double.
template <int Bits>
std::pair<double, double> grid_ends(GroupForm form, const GroupParams& p) {
  const double last = (1 << Bits) - 1, half = (1 << (Bits - 1)) - 1, s = p.scale, o = p.offset;
  if (form == GroupForm::minimum) return {o, last * s + o};
  if (form == GroupForm::symmetric) return {-half * s, half * s};
  if (form == GroupForm::mid_rise) return {-0.5 * last * s, 0.5 * last * s};
  return {-o * s, (last - o) * s};
}

/// |x - x^| within half a step (a step for integer_zero, whose two roundings add), plus what the stored
/// parameters cut off at the ends, plus float rounding.
template <int Bits>
bool element_bound_holds(GroupForm form, float x, float back, const GroupParams& p) {
  const auto [lo, hi] = grid_ends<Bits>(form, p);
  const double v = without_nan(x), step = std::abs(static_cast<double>(p.scale));
  const double cut = std::max({0.0, lo - v, v - hi});
  const double size = std::max(std::abs(lo), std::abs(hi)) + std::abs(v) + std::abs(static_cast<double>(p.offset)) * step;
  const double bound = (form == GroupForm::integer_zero ? 1.0 : 0.5) * step + cut + 4e-7 * size + 1e-44;
  return std::isfinite(back) && std::abs(v - static_cast<double>(back)) <= bound;
}

float number(const nlohmann::json& x) {
  if (x.is_number()) return x.get<float>();
  if (x == "NaN") return std::numeric_limits<float>::quiet_NaN();
  return x == "+Inf" ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
}

void code_by_bits(int bits, GroupForm form, std::span<const float> x, ParamType type, Coded& c) {
  switch (bits) {
    case 2: return code_group<2>(form, x, type, c);
    case 3: return code_group<3>(form, x, type, c);
    case 4: return code_group<4>(form, x, type, c);
    default: return code_group<8>(form, x, type, c);
  }
}

Coded code_by_bits(int bits, GroupForm form, const std::vector<float>& x) {
  Coded c;
  code_by_bits(bits, form, x, ParamType::f32, c);
  return c;
}

}  // namespace

TEST_CASE("group_quant: the worked groups of every form", "[prim][group_quant][oracle]") {
  for (const char* key : {"A1_asym_float_min", "A2_asym_integer_zero", "A3_symmetric"}) {
    const auto o = test::load_oracle("quantization.json", key);
    const std::vector<float> x = test::floats(o.at("x"));
    for (const auto& [name, want] : o.at("cases").items()) {
      CAPTURE(key, name);
      const int bits = name.back() - '0';
      const bool minimum = key[1] == '1', symmetric = key[1] == '3';
      const Coded c = code_by_bits(
          bits, minimum ? GroupForm::minimum : symmetric ? GroupForm::symmetric : GroupForm::integer_zero, x);
      REQUIRE(c.params.scale == Approx(want.at("scale").get<double>()).epsilon(1e-6));
      if (minimum) REQUIRE(c.params.offset == want.at("min").get<float>());
      if (want.contains("zero")) REQUIRE(c.params.offset == want.at("zero").get<float>());
      const int shift = symmetric ? (1 << (bits - 1)) - 1 : 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        REQUIRE(c.codes[i] - shift == want.at("codes")[i].get<int>());
        REQUIRE(c.values[i] == Approx(want.at("dequant")[i].get<double>()).margin(1e-6));
      }
    }
  }
}

TEST_CASE("group_quant: float zero in fp16, and its known loss at large offsets", "[prim][group_quant][oracle]") {
  const auto o = test::load_oracle("quantization.json", "A4_qserve_kv4");
  const auto& e = o.at("example");
  const Coded c = code_group<4>(GroupForm::float_zero, test::floats(e.at("x")), ParamType::f16);
  REQUIRE(c.params.scale == Approx(e.at("scale_fp16").get<double>()).epsilon(1e-8));
  REQUIRE(c.params.offset == e.at("zero_fp16").get<float>());
  REQUIRE(c.codes == e.at("codes").get<std::vector<int>>());
  for (std::size_t i = 0; i < c.values.size(); ++i)
    REQUIRE(c.values[i] == Approx(e.at("dequant")[i].get<double>()).margin(1e-6));

  const auto& far = o.at("hazard_large_offset");
  const Coded clamped = code_group<4>(GroupForm::float_zero, test::floats(far.at("x")), ParamType::f16);
  REQUIRE(clamped.params.offset == far.at("zero_fp16").get<float>());
  REQUIRE(clamped.codes == far.at("after_clamp_0_15").get<std::vector<int>>());
  const Coded minimum = code_group<4>(GroupForm::minimum, test::floats(far.at("x")), ParamType::f32);
  REQUIRE(minimum.codes == far.at("float_min_form_codes").get<std::vector<int>>());
}

TEST_CASE("group_quant: FlexGen's worked group is the minimum form, with the scale upside down", "[prim][group_quant][oracle]") {
  const auto o = test::load_oracle("quantization.json", "X_flexgen");
  const Coded c = code_group<4>(GroupForm::minimum, test::floats(o.at("x")), ParamType::f32);
  REQUIRE(c.params.inverse == Approx(o.at("stored_scale_is_reciprocal").get<double>()).epsilon(1e-6));
  REQUIRE(c.params.offset == o.at("min").get<float>());
  REQUIRE(c.codes == o.at("codes").get<std::vector<int>>());
  for (std::size_t i = 0; i < c.values.size(); ++i) REQUIRE(c.values[i] == Approx(o.at("dequant")[i].get<double>()).margin(1e-6));
}

TEST_CASE("group_quant: constant groups, NaN and infinities follow the policy", "[prim][group_quant][oracle]") {
  const auto o = test::load_oracle("quantization.json", "A5_degenerate_policy");
  for (const auto& want : o.at("cases")) {
    CAPTURE(want.dump());
    std::vector<float> x;
    for (const auto& v : want.at("x")) x.push_back(number(v));
    const Coded c = code_by_bits(want.at("bits").get<int>(), GroupForm::minimum, x);
    REQUIRE(c.params.scale == Approx(want.at("scale").get<double>()));
    REQUIRE(c.params.offset == want.at("min").get<float>());
    REQUIRE(c.codes == want.at("codes").get<std::vector<int>>());
    if (want.contains("dequant")) REQUIRE(c.values == test::floats(want.at("dequant")));
  }
}

TEST_CASE("group_quant: constant groups decode to what the parameter type holds", "[prim][group_quant]") {
  for (const ParamType type : types)
    for (const float v : {0.0f, 2.5f, -3.25f, 1e-3f, -4e4f}) {
      bool saturated = false;
      const float held = stored(type, v, saturated);
      for (const GroupForm form : {GroupForm::minimum, GroupForm::float_zero}) {
        const Coded c = code_group<3>(form, {v, v, v}, type);
        CAPTURE(v, static_cast<int>(form), static_cast<int>(type));
        REQUIRE(c.values == std::vector<float>{held, held, held});
        REQUIRE(c.codes == std::vector<int>{0, 0, 0});
      }
    }
  const GroupParams empty = fit_group(GroupForm::minimum, 4, ParamType::f16, GroupRange{});
  REQUIRE((empty.scale == 0.0f && empty.offset == 0.0f && empty.inverse == 0.0f));
}

TEST_CASE("group_quant: the rounding rules are what they say", "[prim][group_quant]") {
  bool same = true;
  for (int i = -1200; i <= 1200; ++i)
    for (const float nudge : {0.0f, 1e-3f, -1e-3f, 6e-8f}) {
      const float y = static_cast<float>(i) * 0.25f + nudge;
      same = same && round_code(Rounding::half_even, y) == static_cast<int>(std::nearbyint(y));
      same = same && round_code(Rounding::half_up, y) == static_cast<int>(std::floor(y + 0.5f));
      same = same && round_code(Rounding::half_away, y) == static_cast<int>(std::round(y));
    }
  REQUIRE(same);
  static_assert(round_code(Rounding::half_even, 2.5f) == 2 && round_code(Rounding::half_even, 3.5f) == 4);
  static_assert(round_code(Rounding::half_up, -0.5f) == 0 && round_code(Rounding::half_away, -0.5f) == -1);
}

TEST_CASE("group_quant: parameters round to their type and saturate, counted", "[prim][group_quant]") {
  bool saturated = false;
  REQUIRE(stored(ParamType::f16, 65519.0f, saturated) == 65504.0f);
  REQUIRE(saturated);
  saturated = false;
  REQUIRE(stored(ParamType::f16, 1.0f / 3.0f, saturated) == static_cast<float>(half(1.0f / 3.0f)));
  REQUIRE(stored(ParamType::bf16, 1e38f, saturated) == static_cast<float>(bfloat16(1e38f)));
  REQUIRE(stored(ParamType::f32, 0.1f, saturated) == 0.1f);
  REQUIRE_FALSE(saturated);
  REQUIRE(code_group<4>(GroupForm::minimum, {1e6f, 2e6f}, ParamType::f16).params.saturated);
}

TEMPLATE_TEST_CASE_SIG("group_quant: every half keeps the element bound in every form", "[prim][group_quant]",
                       ((int Bits), Bits), 1, 2, 3, 4, 5, 6, 7, 8) {
  for (const GroupForm form : forms) {
    if (form == GroupForm::symmetric && Bits < 2) continue;
    std::uint32_t first_bad = 0x10000;
    std::vector<float> group{0.0f, -1.0f, 0.5f, 2.0f};
    Coded c;
    for (std::uint32_t h = 0; h < 0x10000; ++h) {
      const float x = kvcondense::detail::half_value(static_cast<std::uint16_t>(h));
      group[0] = x;
      code_group<Bits>(form, group, ParamType::f16, c);
      bool ok = needs_repair(x) == !std::isfinite(x);
      for (std::size_t i = 0; i < group.size(); ++i) {
        ok = ok && c.codes[i] >= 0 && c.codes[i] < (1 << Bits);
        ok = ok && (std::isinf(group[i]) ? std::isfinite(c.values[i])
                                         : element_bound_holds<Bits>(form, group[i], c.values[i], c.params));
      }
      // Infinities are clamped to the range of the others, which the symmetric forms make symmetric.
      if (std::isinf(x)) ok = ok && (x > 0 ? c.values[0] == c.values[3]
                                           : c.values[0] == (!has_offset(form) ? -c.values[3] : c.values[1]));
      if (!ok && first_bad == 0x10000) first_bad = h;
    }
    CAPTURE(static_cast<int>(form), first_bad);
    REQUIRE(first_bad == 0x10000);
  }
}

TEMPLATE_TEST_CASE_SIG("group_quant: adversarial groups keep the element bound", "[prim][group_quant]",
                       ((int Bits), Bits), 1, 2, 3, 4, 5, 6, 7, 8) {
  std::vector<std::vector<float>> groups{
      {1e4f, 1e-3f, -1e-3f, 2e-3f, 0.0f},           // one outlier
      {-65504.0f, 65504.0f, 1.0f},                  // the ends of fp16
      {1.0f, 1.0f, 1.0f, 2.0f},                     // two values
      {1e-40f, -1e-40f, 3e-41f},                    // denormals
      {6e-8f, 0.0f, 1.2e-7f},                       // below an fp16 step
      {1000.0f, 1000.25f, 1001.0f},                 // an offset
      {8e37f, -8e37f, 1.0f},                        // the largest numbers
      {std::numeric_limits<float>::quiet_NaN(), 1.0f, 2.0f},
      {-7.0f},
  };
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    std::vector<float> g(32);
    test::fill_normal(g.data(), g.size(), seed);
    for (float& v : g) v = v * static_cast<float>(std::exp2(static_cast<double>(seed % 23) - 11.0)) + static_cast<float>(seed % 7);
    groups.push_back(g);
  }
  for (const auto& g : groups)
    for (const GroupForm form : forms)
      for (const ParamType type : types) {
        if (form == GroupForm::symmetric && Bits < 2) continue;
        const Coded c = code_group<Bits>(form, g, type);
        bool ok = true;
        for (std::size_t i = 0; i < g.size(); ++i) ok = ok && element_bound_holds<Bits>(form, g[i], c.values[i], c.params);
        if (ok) continue;
        CAPTURE(g, c.values, c.params.scale, c.params.offset, static_cast<int>(form), static_cast<int>(type));
        FAIL("an element is further from its number than the bound");
      }
}

TEMPLATE_TEST_CASE_SIG("group_quant: coding what was decoded changes no code", "[prim][group_quant]",
                       ((int Bits), Bits), 1, 2, 3, 4, 8) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    std::vector<float> g(32);
    test::fill_normal(g.data(), g.size(), seed);
    for (const GroupForm form : {GroupForm::minimum, GroupForm::symmetric}) {
      if (form == GroupForm::symmetric && Bits < 2) continue;
      for (const ParamType type : {ParamType::f16, ParamType::f32}) {
        const Coded once = code_group<Bits>(form, g, type), twice = code_group<Bits>(form, once.values, type);
        CAPTURE(seed, static_cast<int>(form), static_cast<int>(type));
        REQUIRE(twice.codes == once.codes);
      }
    }
  }
}

TEST_CASE("group_quant: errors of normal and uniform numbers match the noise tables", "[prim][group_quant][oracle]") {
  const auto tables = test::load_oracle("quantization.json", "Y_noise_model").at("tables");
  constexpr std::size_t n = std::size_t{1} << 20;
  std::vector<float> x(n);
  const auto errors = [&](int bits, bool symmetric, std::size_t group) {
    double sum = 0.0, power = 0.0;
    Coded c;
    for (std::size_t at = 0; at < n; at += group) {
      const std::span<const float> g(x.data() + at, group);
      code_by_bits(bits, symmetric ? GroupForm::symmetric : GroupForm::minimum, g, ParamType::f32, c);
      for (std::size_t i = 0; i < group; ++i) {
        sum += (static_cast<double>(g[i]) - c.values[i]) * (static_cast<double>(g[i]) - c.values[i]);
        power += static_cast<double>(g[i]) * g[i];
      }
    }
    return std::pair{sum / static_cast<double>(n), 10.0 * std::log10(power / sum)};
  };
  test::fill_normal(x.data(), n, 5);
  for (const std::size_t group : {16u, 32u, 64u, 128u})
    for (const int bits : {2, 3, 4, 8})
      for (const bool symmetric : {false, true}) {
        const std::string key = (symmetric ? "sym_b" : "asym_b") + std::to_string(bits);
        CAPTURE(group, key);
        const double want = tables.at("G" + std::to_string(group)).at(key).at("measured_MSE").get<double>();
        // 2 % is the table's own tolerance; its 8-bit numbers are printed to a tenth of a millionth.
        REQUIRE(errors(bits, symmetric, group).first == Approx(want).epsilon(0.02).margin(1e-7));
      }
  test::fill_uniform(x.data(), n, 6);
  for (float& v : x) v = 2.0f * v - 1.0f;
  for (const int bits : {2, 4, 8}) {
    const double want = tables.at("uniform_input").at("asym_b" + std::to_string(bits) + "_G64").at("measured_SQNR_dB").get<double>();
    REQUIRE(errors(bits, false, 64).second == Approx(want).margin(0.1));
  }
}
