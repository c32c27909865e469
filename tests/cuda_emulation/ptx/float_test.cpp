// f32 and f64 in every rounding, against exact values rounded by search.

#include "instruction.hpp"
#include "reference.hpp"

using namespace ptx;
using namespace ptx::test;

namespace {

Numbers numbers(51);
u64 f32() { return numbers.f32(); }
u64 f64() { return numbers.f64(); }
float real(u64 x) { return std::bit_cast<float>(static_cast<u32>(x)); }
u64 bits(float x) { return std::bit_cast<u32>(x); }

u64 flushed(u64 x) { return (x & 0x7fffffff) < 0x800000 ? x & 0x80000000 : x; }
u64 saturated(u64 x) {
  return ref_f32.is_nan(x) || x >> 31 ? 0 : real(x) > 1 ? bits(1.0F) : x;
}
char const modes[] = {'n', 'z', 'm', 'p'};

// A value and which side of it the exact one lies, if a long double cannot hold it.
struct Exact {
  long double value;
  int beyond = 0;  // in magnitude
};
Exact sum(long double a, long double b) {
  long double const s = a + b;
  if (!std::isfinite(s)) return {s};
  long double const t = s - a, lost = (a - (s - t)) + (b - t);
  return {s, lost == 0 ? 0 : (lost > 0) == (s > 0) ? 1 : -1};
}
Exact quotient(long double a, long double b) {
  long double const q = a / b;
  if (!std::isfinite(q) || q == 0 || std::isinf(b)) return {q};
  long double const rest = std::fma(-q, b, a);  // exact
  return {q, rest == 0 ? 0 : ((rest > 0) == (b > 0)) == (q > 0) ? 1 : -1};
}
Exact root(long double a) {
  long double const r = std::sqrt(a);
  if (!std::isfinite(r) || r == 0) return {r};
  long double const rest = std::fma(-r, r, a);
  return {r, rest == 0 ? 0 : rest > 0 ? 1 : -1};
}

// Opcode in all modes and modifiers. Zero's sign follows the mode where numbers cancel.
void check_all(std::string const& op, std::size_t operands, bool can_saturate, bool needs_mode,
               std::function<Exact(std::vector<long double> const&)> const& f) {
  std::string const letters = "r=" + std::string(operands, 'r');
  for (int variant = 0; variant < (can_saturate ? 4 : 2); ++variant) {
    bool const ftz = variant & 1, sat = variant & 2;
    for (char const mode : modes) {
      auto const inputs = rows(640, std::vector<std::function<u64()>>(operands, f32));
      std::string const tail = std::string(ftz ? ".ftz" : "") + (sat ? ".sat" : "") + ".f32";
      auto const want = [&](Row const& r) {
        std::vector<long double> x;
        for (u64 each : r) x.push_back(ref_f32.value(ftz ? flushed(each) : each));
        Exact const e = f(x);
        bool negative = std::signbit(e.value);
        // x - x is -0 downwards only; the exact sums here are made in mode 'n'.
        if (e.value == 0 && mode == 'm' && op != "mul" && op != "sqrt" && op != "div" && op != "rcp") {
          long double const a = op == "fma" ? x[0] * x[1] : x[0], b = op == "fma" ? x[2] : op == "sub" ? -x[1] : x[1];
          negative = std::signbit(a) || std::signbit(b);
        }
        u64 out = ref_f32.round(e.value, mode, negative, e.beyond);
        if (ftz) out = ref_f32.is_nan(out) ? out : flushed(out);
        return sat ? saturated(out) : out;
      };
      check(op + ".r" + mode + tail, letters, inputs, want);
      if (mode == 'n' && !needs_mode) check(op + tail, letters, inputs, want);
    }
  }
}

}  // namespace

TEST_CASE("ptx: f32 arithmetic in every rounding, flushed and saturated") {
  using X = std::vector<long double> const&;
  check_all("add", 2, true, false, [](X x) { return sum(x[0], x[1]); });
  check_all("sub", 2, true, false, [](X x) { return sum(x[0], -x[1]); });
  check_all("mul", 2, true, false, [](X x) { return Exact{x[0] * x[1]}; });
  check_all("fma", 3, true, true, [](X x) { return sum(x[0] * x[1], x[2]); });
  check_all("div", 2, false, true, [](X x) { return quotient(x[0], x[1]); });
  check_all("rcp", 1, false, true, [](X x) { return quotient(1, x[0]); });
  check_all("sqrt", 1, false, true, [](X x) { return root(x[0]); });
}

TEST_CASE("ptx: f64 arithmetic in every rounding") {
  // Factors of 30 bits, so that a long double holds every product.
  auto const short_f64 = [] { return f64() & ~u64{0x3fffff}; };
  for (std::size_t m = 0; m < 4; ++m) {
    std::string const mode = std::string(".r") + modes[m] + ".f64";
    auto const round = [&](Exact e) {
      return ref_f64.round(e.value, modes[m], std::signbit(e.value), e.beyond);
    };
    auto const v = [](u64 x) { return ref_f64.value(x); };
    auto const finite = [&](Row const& r) { return std::isfinite(v(r[0])) && std::isfinite(v(r[1])); };
    auto inputs = rows(640, {short_f64, short_f64});
    std::erase_if(inputs, [&](Row const& r) { return !finite(r) || v(r[0]) == -v(r[1]) || v(r[0]) == v(r[1]); });
    check("add" + mode, "l=ll", inputs, [&](Row const& r) { return round(sum(v(r[0]), v(r[1]))); });
    check("sub" + mode, "l=ll", inputs, [&](Row const& r) { return round(sum(v(r[0]), -v(r[1]))); });
    check("mul" + mode, "l=ll", inputs, [&](Row const& r) { return round({v(r[0]) * v(r[1])}); });
    auto roots = rows(640, {[] { return f64() & ~(u64{1} << 63); }});
    check("sqrt" + mode, "l=l", roots, [&](Row const& r) { return round(root(v(r[0]))); });
  }
  auto const pairs = rows(640, {f64, f64, f64});
  auto const host = [](u64 x) { return std::bit_cast<double>(x); };
  auto const same = [](double x) { return x != x ? 0x7fffffffffffffffULL : std::bit_cast<u64>(x); };
  check("add.f64", "l=ll", pairs, [&](Row const& r) { return same(host(r[0]) + host(r[1])); });
  check("div.rn.f64", "l=ll", pairs, [&](Row const& r) { return same(host(r[0]) / host(r[1])); });
  check("rcp.rn.f64", "l=l", pairs, [&](Row const& r) { return same(1 / host(r[0])); });
  check("fma.rn.f64", "l=lll", pairs, [&](Row const& r) { return same(std::fma(host(r[0]), host(r[1]), host(r[2]))); });
  check("neg.f64", "l=l", pairs, [](Row const& r) { return r[0] ^ u64{1} << 63; });
  check("abs.f64", "l=l", pairs, [](Row const& r) { return r[0] & ~(u64{1} << 63); });
  check("min.f64", "l=ll", pairs, [&](Row const& r) {
    double const a = host(r[0]), b = host(r[1]);
    return a != a ? same(b) : b != b ? r[0] : a < b || (a == b && std::signbit(a)) ? r[0] : r[1];
  });
}

TEST_CASE("ptx: smaller, larger, signs and classes of f32") {
  auto const inputs = rows(1280, {f32, f32});
  auto const pick = [](u64 a, u64 b, bool larger, bool keep_nan) {
    bool const na = ref_f32.is_nan(a), nb = ref_f32.is_nan(b);
    if ((na && nb) || (keep_nan && (na || nb))) return ref_f32.nan();
    if (na || nb) return na ? b : a;
    bool const first_low = real(a) < real(b) || (real(a) == real(b) && a >> 31);
    return first_low != larger ? a : b;
  };
  check("min.f32", "r=rr", inputs, [&](Row const& r) { return pick(r[0], r[1], false, false); });
  check("max.f32", "r=rr", inputs, [&](Row const& r) { return pick(r[0], r[1], true, false); });
  check("min.NaN.f32", "r=rr", inputs, [&](Row const& r) { return pick(r[0], r[1], false, true); });
  check("max.NaN.f32", "r=rr", inputs, [&](Row const& r) { return pick(r[0], r[1], true, true); });
  check("max.ftz.f32", "r=rr", inputs, [&](Row const& r) { return pick(flushed(r[0]), flushed(r[1]), true, false); });
  check("neg.f32", "r=r", inputs, [](Row const& r) { return r[0] ^ 0x80000000; });
  check("neg.ftz.f32", "r=r", inputs, [](Row const& r) { return flushed(r[0]) ^ 0x80000000; });
  check("abs.f32", "r=r", inputs, [](Row const& r) { return r[0] & 0x7fffffff; });
  check("copysign.f32", "r=rr", inputs, [](Row const& r) { return (r[0] & 0x80000000) | (r[1] & 0x7fffffff); });
  check("testp.finite.f32", "p=r", inputs, [](Row const& r) { return u64{std::isfinite(real(r[0]))}; });
  check("testp.infinite.f32", "p=r", inputs, [](Row const& r) { return u64{std::isinf(real(r[0]))}; });
  check("testp.notanumber.f32", "p=r", inputs, [](Row const& r) { return u64{std::isnan(real(r[0]))}; });
}

TEST_CASE("ptx: approximations are near, and exact where they must be") {
  struct Approximation {
    std::string name;
    std::function<long double(long double)> f;
  };
  std::vector<Approximation> const all = {
      {"ex2.approx", [](long double x) { return std::exp2(x); }},
      {"lg2.approx", [](long double x) { return std::log2(x); }},
      {"rcp.approx", [](long double x) { return 1 / x; }},
      {"sqrt.approx", [](long double x) { return std::sqrt(x); }},
      {"rsqrt.approx", [](long double x) { return 1 / std::sqrt(x); }},
      {"sin.approx", [](long double x) { return std::sin(x); }},
      {"cos.approx", [](long double x) { return std::cos(x); }}};
  for (auto const& [name, f] : all)
    for (bool const ftz : {false, true}) {
      auto const inputs = rows(640, {f32});
      auto const got = results(name + (ftz ? ".ftz.f32" : ".f32"), "r=r", inputs);
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        long double const want = f(ref_f32.value(ftz ? flushed(inputs[i][0]) : inputs[i][0]));
        INFO(name << " of " << real(inputs[i][0]));
        if (std::isnan(want)) {
          CHECK(got[i] == ref_f32.nan());
        } else if (std::fabs(want) > 0x1p-126L && std::fabs(want) < 0x1p127L) {
          CHECK(std::fabs(ref_f32.value(got[i]) - want) <= std::fabs(want) * 0x1p-22L);
        } else if (std::fabs(want) < 0x1p-127L) {
          CHECK(std::fabs(ref_f32.value(got[i])) <= (ftz ? 0 : 0x1p-126L));
        }
      }
    }
  CHECK(results("ex2.approx.ftz.f32", "r=r", {{bits(0.0F)}, {bits(-INFINITY)}, {bits(3.0F)}}) ==
        std::vector<u64>{bits(1.0F), bits(0.0F), bits(8.0F)});
  CHECK(results("tanh.approx.f32", "r=r", {{bits(0.0F)}, {bits(INFINITY)}}) == std::vector<u64>{0, bits(1.0F)});
  std::vector<Row> const quotients = {{bits(6.0F), bits(3.0F)}, {bits(1.0F), bits(0x1.8p126F)}, {bits(-1.0F), bits(0x1p127F)}};
  CHECK(results("div.approx.f32", "r=rr", quotients) == std::vector<u64>{bits(2.0F), 0, 0x80000000});
  CHECK(results("div.full.f32", "r=rr", {{bits(6.0F), bits(3.0F)}}) == std::vector<u64>{bits(2.0F)});
  CHECK(results("rcp.approx.ftz.f64", "l=l", {{std::bit_cast<u64>(4.0)}}) == std::vector<u64>{std::bit_cast<u64>(0.25)});
}
