// Every form of cvt, against the exact value rounded by search.

#include "instruction.hpp"
#include "reference.hpp"

using namespace ptx;
using namespace ptx::test;

namespace {

Numbers numbers(61);

struct Number {
  std::string name;
  char sort;  // u, s, f
  u32 bits;
  RealFormat format{};
  char letter() const { return bits <= 16 ? 'h' : bits == 32 ? 'r' : 'l'; }
  u64 draw() const {
    return sort == 'f' ? numbers.real(format.exponent_bits, format.fraction_bits) : numbers.integer(bits);
  }
  long double value(u64 x) const {
    x = low_bits(x, bits);
    if (sort == 'f') return format.value(x);
    if (sort == 's' && x >> (bits - 1)) return -static_cast<long double>(u64{0} - (x | ~low_bits(~u64{0}, bits)));
    return static_cast<long double>(x);
  }
};
Number const integers[] = {{"u8", 'u', 8},   {"s8", 's', 8},   {"u16", 'u', 16}, {"s16", 's', 16},
                           {"u32", 'u', 32}, {"s32", 's', 32}, {"u64", 'u', 64}, {"s64", 's', 64}};
Number const floats[] = {{"f16", 'f', 16, ref_f16}, {"f32", 'f', 32, ref_f32}, {"f64", 'f', 64, ref_f64}};
char const modes[] = {'n', 'z', 'm', 'p'};

std::string letters(Number const& to, Number const& from) { return {to.letter(), '=', from.letter()}; }
std::vector<Row> inputs(Number const& from) { return rows(640, {[&from] { return from.draw(); }}); }

// What a register holds of an integer: filled up by sign or zeros.
u64 in_register(Number const& to, u64 x) {
  x = low_bits(x, to.bits);
  if (to.sort == 's' && to.bits < 64 && x >> (to.bits - 1)) x |= ~low_bits(~u64{0}, to.bits);
  return low_bits(x, width_of(to.letter()));
}
long double whole(long double x, char mode) {
  return mode == 'n' ? std::nearbyint(x) : mode == 'z' ? std::trunc(x) : mode == 'm' ? std::floor(x) : std::ceil(x);
}
u64 flushed(Number const& n, u64 x) {
  return n.bits == 32 && (x & 0x7fffffff) < 0x800000 ? x & 0x80000000 : x;
}
u64 saturated(Number const& n, u64 x) {
  if (n.format.is_nan(x) || x & n.format.sign()) return 0;
  return n.format.value(x) > 1 ? n.format.round(1, 'n', false) : x;
}

}  // namespace

TEST_CASE("ptx: cvt between integers, cut and saturated") {
  for (Number const& to : integers)
    for (Number const& from : integers) {
      std::string const types = "." + to.name + "." + from.name;
      check("cvt" + types, letters(to, from), inputs(from), [&](Row const& r) {
        u64 const wide = from.sort == 's' && from.value(r[0]) < 0 ? low_bits(r[0], from.bits) | ~low_bits(~u64{0}, from.bits)
                                                                  : low_bits(r[0], from.bits);
        return in_register(to, wide);
      });
      check("cvt.sat" + types, letters(to, from), inputs(from), [&](Row const& r) {
        long double const top = std::ldexp(1.0L, static_cast<int>(to.sort == 's' ? to.bits - 1 : to.bits)) - 1;
        long double const bottom = to.sort == 's' ? -top - 1 : 0;
        long double const x = std::clamp(from.value(r[0]), bottom, top);
        return in_register(to, x < 0 ? u64{0} - static_cast<u64>(-x) : static_cast<u64>(x));
      });
    }
}

TEST_CASE("ptx: cvt from floats to integers clamps") {
  for (Number const& to : integers)
    for (Number const& from : floats)
      for (char const mode : modes)
        for (bool const ftz : {false, true}) {
          if (ftz && from.bits != 32) continue;
          std::string const op = std::string("cvt.r") + mode + "i" + (ftz ? ".ftz" : "") + "." + to.name + "." + from.name;
          check(op, letters(to, from), inputs(from), [&](Row const& r) {
            long double const x = whole(from.value(ftz ? flushed(from, r[0]) : r[0]), mode);
            if (std::isnan(x)) {
              bool const wide = from.bits == 64 || to.bits == 64;
              return in_register(to, wide ? u64{1} << (to.bits - 1) : 0);
            }
            long double const top = std::ldexp(1.0L, static_cast<int>(to.sort == 's' ? to.bits - 1 : to.bits)) - 1;
            long double const y = std::clamp(x, to.sort == 's' ? -top - 1 : 0.0L, top);
            return in_register(to, y < 0 ? u64{0} - static_cast<u64>(-y) : static_cast<u64>(y));
          });
        }
}

TEST_CASE("ptx: cvt from integers to floats rounds once") {
  for (Number const& to : floats)
    for (Number const& from : integers)
      for (char const mode : modes) {
        std::string const op = std::string("cvt.r") + mode;
        std::string const types = "." + to.name + "." + from.name;
        auto const round = [&](Row const& r) {
          long double const x = from.value(r[0]);
          return to.format.round(x, mode, x < 0);
        };
        check(op + types, letters(to, from), inputs(from), round);
        check(op + ".sat" + types, letters(to, from), inputs(from), [&](Row const& r) { return saturated(to, round(r)); });
      }
}

TEST_CASE("ptx: cvt between floats") {
  for (Number const& to : floats)
    for (Number const& from : floats) {
      std::string const types = "." + to.name + "." + from.name;
      bool const narrows = to.bits < from.bits, same = to.bits == from.bits;
      bool const can_flush = (to.bits == 32 || from.bits == 32) && !(to.bits == 64 && from.bits == 16);
      for (bool const ftz : {false, true}) {
        if (ftz && !can_flush) continue;
        for (bool const sat : {false, true})
          for (char const mode : modes) {
            std::string const how = narrows ? std::string(".r") + mode : same ? std::string(".r") + mode + "i" : "";
            std::string const op = "cvt" + how + (ftz ? ".ftz" : "") + (sat ? ".sat" : "") + types;
            check(op, letters(to, from), inputs(from), [&](Row const& r) {
              u64 const in = ftz ? flushed(from, r[0]) : r[0];
              long double x = from.value(in);
              bool const negative = in & from.format.sign();
              if (same) x = whole(x, mode);
              u64 out = to.format.round(x, mode, negative);
              if (ftz && !to.format.is_nan(out)) out = flushed(to, out);
              return sat ? saturated(to, out) : out;
            });
            if (how.empty()) break;
          }
      }
    }
}

TEST_CASE("ptx: cvt to halves, relu and in pairs") {
  auto const f32 = [] { return numbers.f32(); };
  for (auto const& [name, format] : {std::pair{"f16", ref_f16}, std::pair{"bf16", ref_bf16}})
    for (char const mode : {'n', 'z'})
      for (bool const relu : {false, true}) {
        std::string const how = std::string("cvt.r") + mode + (relu ? ".relu." : ".") + name;
        RealFormat const to = format;
        auto const one = [&](u64 x) {
          u64 const out = to.round(ref_f32.value(x), mode, x >> 31);
          return relu && out & to.sign() ? 0 : out;
        };
        check(how + ".f32", "h=r", rows(1280, {f32}), [&](Row const& r) { return one(r[0]); });
        check(how + "x2.f32", "r=rr", rows(1280, {f32, f32}),
              [&](Row const& r) { return one(r[0]) << 16 | one(r[1]); });
      }
  check("cvt.f32.bf16", "r=h", rows(320, {[] { return numbers.bf16(); }}), [](Row const& r) {
    return ref_bf16.is_nan(r[0]) ? ref_f32.nan() : r[0] << 16;
  });
}

TEST_CASE("ptx: cvt fills a wider register by the sign of its type") {
  CHECK(results("cvt.s8.s32", "r=r", {{0x80}}) == std::vector<u64>{0xffffff80});
  CHECK(results("cvt.u8.s32", "r=r", {{0x1ff}}) == std::vector<u64>{0xff});
  CHECK(results("cvt.s16.s32", "r=r", {{0x8000}}) == std::vector<u64>{0xffff8000});
}
