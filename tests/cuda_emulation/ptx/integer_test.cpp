// Integer arithmetic against formulas over 128 bits.

#include "instruction.hpp"

using namespace ptx;
using namespace ptx::test;

namespace {

struct Integer {
  std::string name;
  u32 bits;
  bool is_signed;
  char letter() const { return bits == 16 ? 'h' : bits == 32 ? 'r' : 'l'; }
  i128 value(u64 x) const {
    x = low_bits(x, bits);
    return is_signed && x >> (bits - 1) ? i128{x} - (i128{1} << bits) : i128{x};
  }
  u64 cut(i128 x) const { return low_bits(static_cast<u64>(x), bits); }
};
Integer const all_types[] = {{"u16", 16, false}, {"s16", 16, true}, {"u32", 32, false},
                             {"s32", 32, true},  {"u64", 64, false}, {"s64", 64, true}};

std::vector<Row> random_rows(u32 bits, std::size_t operands) {
  static Numbers numbers(11);
  return rows(640, std::vector<std::function<u64()>>(operands, [bits] { return numbers.integer(bits); }));
}

}  // namespace

TEST_CASE("ptx: arithmetic of integers of every width") {
  for (Integer const& t : all_types) {
    std::string const two = std::string(1, t.letter()) + "=" + std::string(2, t.letter());
    std::string const three = two + t.letter(), one = two.substr(0, 3);
    auto const pairs = random_rows(t.bits, 2), triples = random_rows(t.bits, 3);
    auto const binary = [&](std::string const& op, auto f) {
      check(op + "." + t.name, two, pairs, [&](Row const& r) { return t.cut(f(t.value(r[0]), t.value(r[1]))); });
    };
    binary("add", [](i128 a, i128 b) { return a + b; });
    binary("sub", [](i128 a, i128 b) { return a - b; });
    binary("min", [](i128 a, i128 b) { return a < b ? a : b; });
    binary("max", [](i128 a, i128 b) { return a < b ? b : a; });
    binary("div", [](i128 a, i128 b) { return b == 0 ? i128{-1} : a / b; });
    binary("rem", [](i128 a, i128 b) { return b == 0 ? a : a % b; });
    // 64 x 64 bits unsigned do not fit a signed product: their own formula.
    auto const product = [&](Row const& r) {
      return t.is_signed ? static_cast<u128>(t.value(r[0]) * t.value(r[1]))
                         : static_cast<u128>(low_bits(r[0], t.bits)) * low_bits(r[1], t.bits);
    };
    auto const shifted = [&](Row const& r) {
      return t.is_signed ? static_cast<u64>(static_cast<i128>(product(r)) >> t.bits)
                         : static_cast<u64>(product(r) >> t.bits);
    };
    check("mul.lo." + t.name, two, pairs, [&](Row const& r) { return low_bits(static_cast<u64>(product(r)), t.bits); });
    check("mul.hi." + t.name, two, pairs, [&](Row const& r) { return low_bits(shifted(r), t.bits); });
    check("mad.lo." + t.name, three, triples, [&](Row const& r) {
      return low_bits(static_cast<u64>(product(r)) + r[2], t.bits);
    });
    check("mad.hi." + t.name, three, triples, [&](Row const& r) { return low_bits(shifted(r) + r[2], t.bits); });
    check("sad." + t.name, three, triples, [&](Row const& r) {
      i128 const a = t.value(r[0]), b = t.value(r[1]);
      return t.cut((a < b ? b - a : a - b) + t.value(r[2]));
    });
    if (t.is_signed) {
      check("neg." + t.name, one, pairs, [&](Row const& r) { return t.cut(-t.value(r[0])); });
      check("abs." + t.name, one, pairs, [&](Row const& r) { return t.cut(t.value(r[0]) < 0 ? -t.value(r[0]) : t.value(r[0])); });
    }
    if (t.bits < 64) {
      char const wide = t.bits == 16 ? 'r' : 'l';
      check("mul.wide." + t.name, std::string(1, wide) + two.substr(1), pairs,
            [&](Row const& r) { return low_bits(static_cast<u64>(product(r)), 2 * t.bits); });
      auto wide_rows = triples;
      static Numbers numbers(12);
      for (Row& r : wide_rows) r[2] = numbers.integer(2 * t.bits);
      check("mad.wide." + t.name, std::string(1, wide) + two.substr(1) + wide, wide_rows,
            [&](Row const& r) { return low_bits(static_cast<u64>(product(r)) + r[2], 2 * t.bits); });
    }
  }
}

TEST_CASE("ptx: saturating addition, dot products of bytes") {
  auto const pairs = random_rows(32, 2), triples = random_rows(32, 3);
  auto const clamp = [](i64 x) {
    return static_cast<u64>(static_cast<u32>(x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : x));
  };
  auto const s = [](u64 x) { return i64{static_cast<i32>(x)}; };
  check("add.sat.s32", "r=rr", pairs, [&](Row const& r) { return clamp(s(r[0]) + s(r[1])); });
  check("sub.sat.s32", "r=rr", pairs, [&](Row const& r) { return clamp(s(r[0]) - s(r[1])); });
  for (bool sa : {false, true})
    for (bool sb : {false, true}) {
      std::string const name = std::string("dp4a.") + (sa ? "s32" : "u32") + (sb ? ".s32" : ".u32");
      check(name, "r=rrr", triples, [&](Row const& r) {
        i64 sum = static_cast<i64>(r[2]);
        for (u32 n = 0; n < 4; ++n) {
          i64 const a = static_cast<i64>(r[0] >> (8 * n) & 255), b = static_cast<i64>(r[1] >> (8 * n) & 255);
          sum += (sa && a > 127 ? a - 256 : a) * (sb && b > 127 ? b - 256 : b);
        }
        return low_bits(static_cast<u64>(sum), 32);
      });
    }
}
