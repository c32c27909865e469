// Logic, shifts and bit fields.

#include <algorithm>
#include <bit>

#include "lanes.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

constexpr u64 low_bits(u32 n) { return n >= 64 ? ~u64{0} : (u64{1} << n) - 1; }

// u32 on a plain byte of position and length, as bfe and bfi take them.
template <class T>
T extract(T a, u32 position, u32 length) {
  using U = std::make_unsigned_t<T>;
  constexpr u32 bits = 8 * sizeof(T);
  position &= 255, length &= 255;
  u32 const taken = position >= bits ? 0 : std::min(length, bits - position);
  u64 field = position >= bits ? 0 : static_cast<u64>(static_cast<U>(a)) >> position & low_bits(taken);
  if (std::is_signed_v<T> && length != 0) {
    // The sign is the field's last bit, or the number's where the field reaches beyond it.
    u32 const last = std::min(position + length - 1, bits - 1);
    if (static_cast<U>(a) >> last & 1) field |= ~low_bits(taken);
  }
  return static_cast<T>(static_cast<U>(field));
}

template <class T>
T insert(T from, T into, u32 position, u32 length) {
  position &= 255, length &= 255;
  if (position >= 8 * sizeof(T)) return into;
  T const mask = static_cast<T>(low_bits(length) << position);
  return static_cast<T>((into & ~mask) | (static_cast<T>(u64{from} << position) & mask));
}

u32 permute(u32 a, u32 b, u32 selector) {
  u64 const bytes = u64{b} << 32 | a;
  u32 out = 0;
  for (u32 n = 0; n < 4; ++n) {
    u32 const s = selector >> (4 * n) & 15;
    u32 byte = static_cast<u32>(bytes >> (8 * (s & 7))) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;  // the sign, spread over the byte
    out |= byte << (8 * n);
  }
  return out;
}

void lop3(Warp& w, Instruction const& i, Mask m) {
  u32 const *const a = w.in<u32>(i.o[1]), *const b = w.in<u32>(i.o[2]), *const c = w.in<u32>(i.o[3]);
  u32 const table = static_cast<u32>(i.o[4].value);
  u32 out[warp_size] = {};
  for (u32 row = 0; row < 8; ++row) {
    if (!(table >> row & 1)) continue;
    u32 const na = row & 4 ? 0 : ~0U, nb = row & 2 ? 0 : ~0U, nc = row & 1 ? 0 : ~0U;
    for (u32 l = 0; l < warp_size; ++l) out[l] |= (a[l] ^ na) & (b[l] ^ nb) & (c[l] ^ nc);
  }
  w.out(i.o[0], m, out);
}

template <class T>
u32 find_first(T x, bool shift_amount) {
  constexpr u32 bits = 8 * sizeof(T);
  using U = std::make_unsigned_t<T>;
  U const u = static_cast<U>(x < 0 ? ~x : x);
  if (u == 0) return ~0U;
  u32 const at = bits - 1 - static_cast<u32>(std::countl_zero(u));
  return shift_amount ? bits - 1 - at : at;
}

template <class U>
void define_width(Opcodes& all) {
  using S = std::make_signed_t<U>;
  constexpr u32 bits = 8 * sizeof(U);
  std::string const n = std::to_string(bits);
  define(all, "and.b" + n, [](U a, U b) { return static_cast<U>(a & b); });
  define(all, "or.b" + n, [](U a, U b) { return static_cast<U>(a | b); });
  define(all, "xor.b" + n, [](U a, U b) { return static_cast<U>(a ^ b); });
  define(all, "not.b" + n, [](U a) { return static_cast<U>(~a); });
  define(all, "shl.b" + n, [](U a, u32 s) { return static_cast<U>(s >= bits ? 0 : a << s); });
  define(all, "shr.{b,u}" + n, [](U a, u32 s) { return static_cast<U>(s >= bits ? 0 : a >> s); });
  define(all, "shr.s" + n, [](S a, u32 s) { return static_cast<S>(a >> std::min(s, bits - 1)); });
  if constexpr (bits >= 32) {
    define(all, "bfe.u" + n, [](U a, u32 p, u32 l) { return extract(a, p, l); });
    define(all, "bfe.s" + n, [](S a, u32 p, u32 l) { return extract(a, p, l); });
    define(all, "bfi.b" + n, [](U a, U b, u32 p, u32 l) { return insert(a, b, p, l); });
    define(all, "popc.b" + n, [](U a) { return static_cast<u32>(std::popcount(a)); });
    define(all, "clz.b" + n, [](U a) { return static_cast<u32>(std::countl_zero(a)); });
    define(all, "brev.b" + n, [](U a) {
      U r = 0;
      for (u32 b = 0; b < bits; ++b) r |= (a >> b & 1) << (bits - 1 - b);
      return r;
    });
    define(all, "bfind.u" + n, [](U a) { return find_first(a, false); });
    define(all, "bfind.s" + n, [](S a) { return find_first(a, false); });
    define(all, "bfind.shiftamt.u" + n, [](U a) { return find_first(a, true); });
    define(all, "bfind.shiftamt.s" + n, [](S a) { return find_first(a, true); });
  }
}

}  // namespace

void define_bits(Opcodes& all) {
  define_width<u16>(all);
  define_width<u32>(all);
  define_width<u64>(all);
  define(all, "and.pred", [](bool a, bool b) { return a && b; });
  define(all, "or.pred", [](bool a, bool b) { return a || b; });
  define(all, "xor.pred", [](bool a, bool b) { return a != b; });
  define(all, "not.pred", [](bool a) { return !a; });
  define(all, "shf.l.wrap.b32", [](u32 a, u32 b, u32 s) {
    return static_cast<u32>((u64{b} << 32 | a) << (s & 31) >> 32);
  });
  define(all, "shf.r.wrap.b32", [](u32 a, u32 b, u32 s) {
    return static_cast<u32>((u64{b} << 32 | a) >> (s & 31));
  });
  define(all, "shf.l.clamp.b32", [](u32 a, u32 b, u32 s) {
    return s >= 32 ? a : static_cast<u32>((u64{b} << 32 | a) << s >> 32);
  });
  define(all, "shf.r.clamp.b32", [](u32 a, u32 b, u32 s) {
    return s >= 32 ? b : static_cast<u32>((u64{b} << 32 | a) >> s);
  });
  define(all, "bmsk.clamp.b32", [](u32 position, u32 length) {
    return position >= 32 ? 0U : static_cast<u32>(low_bits(std::min(length, 32U)) << position);
  });
  define(all, "bmsk.wrap.b32", [](u32 position, u32 length) {
    return static_cast<u32>(low_bits(length & 31) << (position & 31));
  });
  define(all, "prmt.b32", [](u32 a, u32 b, u32 s) { return permute(a, b, s); });
  all.add("lop3.b32", "r=rrri", lop3);
}

}  // namespace ptx
