// f16 and bf16 arithmetic, single and in pairs, against exact sums rounded by search.

#include "instruction.hpp"
#include "reference.hpp"

using namespace ptx;
using namespace ptx::test;

namespace {

Numbers numbers(41);

struct Half {
  std::string name;
  RealFormat format;
  u64 draw() const { return name == "f16" ? numbers.f16() : numbers.bf16(); }
  u64 smallest() const { return u64{1} << format.fraction_bits; }
  u64 one() const { return format.round(1, 'n', false); }
};
Half const halves[] = {{"f16", ref_f16}, {"bf16", ref_bf16}};

// a * b + c rounded; a long double holds the product, and what the sum loses decides a tie.
u64 fused(RealFormat f, long double a, long double b, long double c) {
  long double const p = a * b, s = p + c;
  if (std::isnan(s) || std::isinf(s)) return f.round(s, 'n', std::signbit(s));
  long double const t = s - p, lost = (p - (s - t)) + (c - t);
  int const beyond = lost == 0 ? 0 : (lost > 0) == (s > 0) ? 1 : -1;
  return f.round(s, 'n', std::signbit(s), beyond);
}

// The same for one number and for a pair of two.
void check_half(std::string const& opcode, std::size_t operands, Half const& h,
                std::function<u64(Row const&)> const& want) {
  auto const singles = rows(1280, std::vector<std::function<u64()>>(operands, [&h] { return h.draw(); }));
  check(opcode, "h=" + std::string(operands, 'h'), singles, want);
  auto const pairs = rows(640, std::vector<std::function<u64()>>(operands, [&h] { return h.draw() | h.draw() << 16; }));
  check(opcode + "x2", "r=" + std::string(operands, 'r'), pairs, [&](Row const& r) {
    Row low, high;
    for (u64 x : r) low.push_back(x & 0xffff), high.push_back(x >> 16);
    return want(low) | want(high) << 16;
  });
}

}  // namespace

TEST_CASE("ptx: arithmetic of f16 and bf16") {
  for (Half const& h : halves) {
    RealFormat const f = h.format;
    auto const add = [f](u64 a, u64 b) {
      long double const s = f.value(a) + f.value(b);
      return f.round(s, 'n', std::signbit(s));
    };
    auto const multiply = [f](u64 a, u64 b) {
      long double const s = f.value(a) * f.value(b);
      return f.round(s, 'n', std::signbit(s));
    };
    auto const fma = [f](Row const& r) { return fused(f, f.value(r[0]), f.value(r[1]), f.value(r[2])); };
    std::string const dot = "." + h.name;
    check_half("add" + dot, 2, h, [&](Row const& r) { return add(r[0], r[1]); });
    check_half("add.rn" + dot, 2, h, [&](Row const& r) { return add(r[0], r[1]); });
    check_half("sub" + dot, 2, h, [&](Row const& r) { return add(r[0], f.is_nan(r[1]) ? r[1] : r[1] ^ f.sign()); });
    check_half("mul.rn" + dot, 2, h, [&](Row const& r) { return multiply(r[0], r[1]); });
    check_half("fma.rn" + dot, 3, h, fma);
    check_half("fma.rn.relu" + dot, 3, h, [&](Row const& r) {
      u64 const x = fma(r);
      return x & f.sign() ? 0 : x;
    });
    check_half("neg" + dot, 1, h, [&](Row const& r) { return r[0] ^ f.sign(); });
    check_half("abs" + dot, 1, h, [&](Row const& r) { return r[0] & (f.sign() - 1); });
    auto const pick = [&](Row const& r, bool larger, bool keep_nan) {
      bool const na = f.is_nan(r[0]), nb = f.is_nan(r[1]);
      if ((na && nb) || (keep_nan && (na || nb))) return f.nan();
      if (na) return r[1];
      if (nb) return r[0];
      long double const a = f.value(r[0]), b = f.value(r[1]);
      bool const first_low = a < b || (a == b && std::signbit(a));
      return first_low != larger ? r[0] : r[1];
    };
    check_half("min" + dot, 2, h, [&](Row const& r) { return pick(r, false, false); });
    check_half("max" + dot, 2, h, [&](Row const& r) { return pick(r, true, false); });
    check_half("min.NaN" + dot, 2, h, [&](Row const& r) { return pick(r, false, true); });
    check_half("max.NaN" + dot, 2, h, [&](Row const& r) { return pick(r, true, true); });
    if (h.name != "f16") continue;
    auto const flushed = [&](u64 x) { return (x & 0x7fff) < h.smallest() ? x & f.sign() : x; };
    check_half("add.ftz.f16", 2, h, [&](Row const& r) { return flushed(add(flushed(r[0]), flushed(r[1]))); });
    auto const saturated = [&](u64 x) {
      return f.is_nan(x) || x & f.sign() ? 0 : f.value(x) > 1 ? h.one() : x;
    };
    check_half("mul.sat.f16", 2, h, [&](Row const& r) { return saturated(multiply(r[0], r[1])); });
    check_half("fma.rn.sat.f16", 3, h, [&](Row const& r) { return saturated(fma(r)); });
    check_half("fma.rn.ftz.f16", 3, h, [&](Row const& r) {
      return flushed(fma({flushed(r[0]), flushed(r[1]), flushed(r[2])}));
    });
  }
}

TEST_CASE("ptx: bf16 fma decides ties by what a double would lose") {
  // 1.5 * 1.0078125 lies halfway between two bf16; the third operand is far below both.
  std::vector<Row> const cases = {{0x3fc0, 0x3f81, 0x0001}, {0x3fc0, 0x3f81, 0x8001}, {0x3fc0, 0x3f81, 0x0000}};
  check("fma.rn.bf16", "h=hhh", cases, [](Row const& r) {
    return fused(ref_bf16, ref_bf16.value(r[0]), ref_bf16.value(r[1]), ref_bf16.value(r[2]));
  });
  auto const got = results("fma.rn.bf16", "h=hhh", cases);
  CHECK(got[0] == got[1] + 1);
}

TEST_CASE("ptx: exponentials and tangents of halves are near") {
  for (Half const& h : halves) {
    std::string const name = h.name == "f16" ? "ex2.approx.f16" : "ex2.approx.ftz.bf16";
    auto const inputs = rows(640, {[&h] { return h.draw(); }});
    auto const got = results(name, "h=h", inputs);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      long double const want = std::exp2(h.format.value(inputs[i][0]));
      if (std::isnan(want) || want > 6e4L) continue;
      CHECK(std::fabs(h.format.value(got[i]) - want) <= want / (1 << h.format.fraction_bits) + 1e-7L);
    }
  }
}
