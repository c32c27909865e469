// Logic, shifts and fields, bit by bit.

#include "instruction.hpp"

using namespace ptx;
using namespace ptx::test;

namespace {

Numbers numbers(21);
std::function<u64()> integer(u32 bits) {
  return [bits] { return numbers.integer(bits); };
}
std::function<u64()> below(u64 n) {
  return [n] { return numbers.any() % n; };
}
bool bit(u64 x, u64 n) { return n < 64 && (x >> n & 1); }

}  // namespace

TEST_CASE("ptx: logic and shifts") {
  for (u32 const bits : {16U, 32U, 64U}) {
    char const c = bits == 16 ? 'h' : bits == 32 ? 'r' : 'l';
    std::string const n = std::to_string(bits), two = std::string{c, '=', c, c}, shift = std::string{c, '=', c, 'r'};
    auto const pairs = rows(320, {integer(bits), integer(bits)});
    auto const shifts = rows(640, {integer(bits), below(80)});
    check("and.b" + n, two, pairs, [](Row const& r) { return r[0] & r[1]; });
    check("or.b" + n, two, pairs, [](Row const& r) { return r[0] | r[1]; });
    check("xor.b" + n, two, pairs, [](Row const& r) { return r[0] ^ r[1]; });
    check("not.b" + n, two.substr(0, 3), pairs, [&](Row const& r) { return low_bits(~r[0], bits); });
    auto const each = [bits](auto f) {
      u64 out = 0;
      for (u32 b = 0; b < bits; ++b) out |= u64{f(b)} << b;
      return out;
    };
    check("shl.b" + n, shift, shifts, [&](Row const& r) {
      return each([&](u32 b) { return b >= r[1] && bit(r[0], b - r[1]); });
    });
    for (std::string const type : {"b", "u"})
      check("shr." + type + n, shift, shifts, [&](Row const& r) {
        return each([&](u32 b) { return b + r[1] < bits && bit(r[0], b + r[1]); });
      });
    check("shr.s" + n, shift, shifts, [&](Row const& r) {
      return each([&](u32 b) { return bit(r[0], std::min<u64>(b + r[1], bits - 1)); });
    });
  }
}

TEST_CASE("ptx: bit fields and counts") {
  for (u32 const bits : {32U, 64U}) {
    char const c = bits == 32 ? 'r' : 'l';
    std::string const n = std::to_string(bits), one = std::string{c, '=', c}, count = std::string{'r', '=', c};
    auto const singles = rows(640, {integer(bits)});
    auto const fields = rows(960, {integer(bits), below(80), below(80)});
    check("bfe.u" + n, one + "rr", fields, [&](Row const& r) {
      u64 out = 0;
      for (u64 b = 0; b < r[2] && b < bits; ++b) out |= u64{r[1] + b < bits && bit(r[0], r[1] + b)} << b;
      return out;
    });
    check("bfe.s" + n, one + "rr", fields, [&](Row const& r) {
      if (r[2] == 0) return u64{0};
      u64 out = 0;
      bool const sign = bit(r[0], std::min<u64>(r[1] + r[2] - 1, bits - 1));
      for (u64 b = 0; b < bits; ++b)
        out |= u64{b < r[2] && r[1] + b < bits ? bit(r[0], r[1] + b) : sign} << b;
      return out;
    });
    check("bfi.b" + n, std::string{c, '=', c, c, 'r', 'r'}, rows(960, {integer(bits), integer(bits), below(80), below(80)}),
          [&](Row const& r) {
            u64 out = 0;
            for (u64 b = 0; b < bits; ++b)
              out |= u64{b >= r[2] && b - r[2] < r[3] ? bit(r[0], b - r[2]) : bit(r[1], b)} << b;
            return out;
          });
    check("popc.b" + n, count, singles, [&](Row const& r) {
      u64 sum = 0;
      for (u32 b = 0; b < bits; ++b) sum += bit(r[0], b);
      return sum;
    });
    auto const leading = [bits](u64 x) {
      u64 zeros = 0;
      while (zeros < bits && !bit(x, bits - 1 - zeros)) ++zeros;
      return zeros;
    };
    check("clz.b" + n, count, singles, [&](Row const& r) { return leading(r[0]); });
    check("brev.b" + n, one, singles, [&](Row const& r) {
      u64 out = 0;
      for (u32 b = 0; b < bits; ++b) out |= u64{bit(r[0], b)} << (bits - 1 - b);
      return out;
    });
    auto const first = [&](u64 x) { return leading(x) == bits ? u64{0xffffffff} : bits - 1 - leading(x); };
    auto const magnitude = [&](u64 x) { return bit(x, bits - 1) ? low_bits(~x, bits) : x; };
    check("bfind.u" + n, count, singles, [&](Row const& r) { return first(r[0]); });
    check("bfind.s" + n, count, singles, [&](Row const& r) { return first(magnitude(r[0])); });
    auto const shift = [&](u64 x) { return leading(x) == bits ? u64{0xffffffff} : leading(x); };
    check("bfind.shiftamt.u" + n, count, singles, [&](Row const& r) { return shift(r[0]); });
    check("bfind.shiftamt.s" + n, count, singles, [&](Row const& r) { return shift(magnitude(r[0])); });
  }
  auto const masks = rows(640, {below(40), below(40)});
  check("bmsk.clamp.b32", "r=rr", masks, [](Row const& r) {
    u64 out = 0;
    for (u64 b = 0; b < 32; ++b) out |= u64{b >= r[0] && b - r[0] < r[1]} << b;
    return out;
  });
  check("bmsk.wrap.b32", "r=rr", masks, [](Row const& r) {
    u64 const from = r[0] % 32, length = r[1] % 32;
    u64 out = 0;
    for (u64 b = 0; b < 32; ++b) out |= u64{b >= from && b - from < length} << b;
    return out;
  });
}

TEST_CASE("ptx: predicates, lop3, prmt, shf") {
  auto const flags = rows(32, {below(2), below(2)});
  check("and.pred", "p=pp", flags, [](Row const& r) { return r[0] & r[1]; });
  check("or.pred", "p=pp", flags, [](Row const& r) { return r[0] | r[1]; });
  check("xor.pred", "p=pp", flags, [](Row const& r) { return r[0] ^ r[1]; });
  check("not.pred", "p=p", flags, [](Row const& r) { return r[0] ^ 1; });
  auto const triples = rows(64, {integer(32), integer(32), integer(32)});
  for (u32 table = 0; table < 256; table += 5)
    check("lop3.b32", "r=rrr", triples, [&](Row const& r) {
      u64 out = 0;
      for (u32 b = 0; b < 32; ++b)
        out |= u64{table >> (4 * bit(r[0], b) + 2 * bit(r[1], b) + bit(r[2], b)) & 1} << b;
      return out;
    }, ", " + std::to_string(table));
  check("prmt.b32", "r=rrr", rows(960, {integer(32), integer(32), integer(32)}), [](Row const& r) {
    u64 out = 0;
    for (u32 n = 0; n < 4; ++n) {
      u64 const s = r[2] >> (4 * n) & 15, from = s % 8;
      u64 const byte = (from < 4 ? r[0] >> (8 * from) : r[1] >> (8 * (from - 4))) & 255;
      out |= (s < 8 ? byte : byte > 127 ? 255 : 0) << (8 * n);
    }
    return out;
  });
  auto const funnels = rows(640, {integer(32), integer(32), below(80)});
  auto const funnel = [](Row const& r, bool left, u64 by) {
    u64 out = 0;
    for (u64 b = 0; b < 32; ++b) {
      u64 const from = left ? 32 + b - by : b + by;  // in the pair b:a
      out |= u64{from < 32 ? bit(r[0], from) : bit(r[1], from - 32)} << b;
    }
    return out;
  };
  check("shf.l.wrap.b32", "r=rrr", funnels, [&](Row const& r) { return funnel(r, true, r[2] % 32); });
  check("shf.r.wrap.b32", "r=rrr", funnels, [&](Row const& r) { return funnel(r, false, r[2] % 32); });
  check("shf.l.clamp.b32", "r=rrr", funnels, [&](Row const& r) { return funnel(r, true, std::min<u64>(r[2], 32)); });
  check("shf.r.clamp.b32", "r=rrr", funnels, [&](Row const& r) { return funnel(r, false, std::min<u64>(r[2], 32)); });
}
