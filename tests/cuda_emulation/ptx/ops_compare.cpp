// setp, set, selp, slct.

#include "lanes.hpp"
#include "numbers.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

using I = Instruction const&;

// In the order of compare_names.
enum : u8 { eq, ne, lt, le, gt, ge, lo, ls, hi, hs, equ, neu, ltu, leu, gtu, geu, num, nan_ };

template <class T, class F>
Mask each(T const* a, T const* b, F f) {
  Mask out = 0;
  for (u32 l = 0; l < warp_size; ++l) out |= Mask{f(a[l], b[l])} << l;
  return out;
}

template <class T>
Mask unordered(T const* a, T const* b) {
  return each(a, b, [](T x, T y) { return x != x || y != y; });
}

template <class T>
Mask compared(u8 how, T const* a, T const* b) {
  switch (how) {
    case eq: return each(a, b, [](T x, T y) { return x == y; });
    case ne: return each(a, b, [](T x, T y) { return x != y; }) & ~unordered(a, b);
    case lt: case lo: return each(a, b, [](T x, T y) { return x < y; });
    case le: case ls: return each(a, b, [](T x, T y) { return x <= y; });
    case gt: case hi: return each(a, b, [](T x, T y) { return x > y; });
    case ge: case hs: return each(a, b, [](T x, T y) { return x >= y; });
    case equ: return each(a, b, [](T x, T y) { return x == y; }) | unordered(a, b);
    case neu: return each(a, b, [](T x, T y) { return x != y; });
    case ltu: return each(a, b, [](T x, T y) { return !(x >= y); });
    case leu: return each(a, b, [](T x, T y) { return !(x > y); });
    case gtu: return each(a, b, [](T x, T y) { return !(x <= y); });
    case geu: return each(a, b, [](T x, T y) { return !(x < y); });
    case num: return ~unordered(a, b);
    default: return unordered(a, b);
  }
}

struct As16 {  // f16 and bf16 are compared as floats
  static float f16(u16 h) { return widen_f16(h); }
  static float bf16(u16 h) { return widen_bf16(h); }
};

template <class T>
Mask compare_numbers(Warp& w, I i) {
  T const *a = w.in<T>(i.o[1]), *b = w.in<T>(i.o[2]);
  if constexpr (std::is_same_v<T, float>) {
    float fa[warp_size], fb[warp_size];
    if (i.mod.ftz) {
      for (u32 l = 0; l < warp_size; ++l) fa[l] = flush(a[l]), fb[l] = flush(b[l]);
      return compared(i.mod.compare, fa, fb);
    }
  }
  return compared(i.mod.compare, a, b);
}

template <float (*Wide)(u16)>
Mask compare_halves(Warp& w, I i) {
  u16 const *a = w.in<u16>(i.o[1]), *b = w.in<u16>(i.o[2]);
  float fa[warp_size], fb[warp_size];
  for (u32 l = 0; l < warp_size; ++l) {
    fa[l] = Wide(a[l]), fb[l] = Wide(b[l]);
    if (i.mod.ftz && std::fabs(fa[l]) < 0x1p-14F) fa[l] = 0;
    if (i.mod.ftz && std::fabs(fb[l]) < 0x1p-14F) fb[l] = 0;
  }
  return compared(i.mod.compare, fa, fb);
}

// The half of every word that `shift` names.
Mask compare_pairs(Warp& w, I i, u32 shift) {
  u32 const *a = w.in<u32>(i.o[1]), *b = w.in<u32>(i.o[2]);
  float fa[warp_size], fb[warp_size];
  for (u32 l = 0; l < warp_size; ++l) {
    fa[l] = widen_f16(static_cast<u16>(a[l] >> shift)), fb[l] = widen_f16(static_cast<u16>(b[l] >> shift));
    if (i.mod.ftz && std::fabs(fa[l]) < 0x1p-14F) fa[l] = 0;
    if (i.mod.ftz && std::fabs(fb[l]) < 0x1p-14F) fb[l] = 0;
  }
  return compared(i.mod.compare, fa, fb);
}

// p gets the lower half's outcome, q the upper's.
void setp_pairs(Warp& w, I i, Mask m) {
  Mask const low = compare_pairs(w, i, 0), high = compare_pairs(w, i, 16);
  w.out_mask(i.o[0].at, m, low);
  if (i.o[0].second != Operand::none) w.out_mask(i.o[0].second, m, high);
}
void set_pairs(Warp& w, I i, Mask m) {
  Mask const low = compare_pairs(w, i, 0), high = compare_pairs(w, i, 16);
  u32 out[warp_size];
  for (u32 l = 0; l < warp_size; ++l)
    out[l] = (low >> l & 1 ? 0x3c00U : 0) | (high >> l & 1 ? 0x3c000000U : 0);
  w.out(i.o[0], m, out);
}

Mask combined(char how, Mask value, Mask with) {
  return how == '&' ? value & with : how == '|' ? value | with : how == '^' ? value ^ with : value;
}

template <Mask (*Compare)(Warp&, I)>
void setp(Warp& w, I i, Mask m) {
  Mask const value = Compare(w, i);
  Mask const with = i.o.size() > 3 ? w.mask_of(i.o[3]) : 0;
  w.out_mask(i.o[0].at, m, combined(i.mod.combine, value, with));
  if (i.o[0].second != Operand::none)
    w.out_mask(i.o[0].second, m, combined(i.mod.combine, ~value, with));
}

// All ones, or 1.0 where the result is a float.
template <Mask (*Compare)(Warp&, I)>
void set(Warp& w, I i, Mask m) {
  Mask const value =
      combined(i.mod.combine, Compare(w, i), i.o.size() > 3 ? w.mask_of(i.o[3]) : Mask{0});
  u32 const yes = i.mod.types[0].kind == Kind::floating ? std::bit_cast<u32>(1.0F) : ~0U;
  u32 out[warp_size];
  for (u32 l = 0; l < warp_size; ++l) out[l] = value >> l & 1 ? yes : 0;
  w.out(i.o[0], m, out);
}

template <Mask (*Compare)(Warp&, I)>
void define_comparison(Opcodes& all, std::string const& names, std::string const& type,
                       std::string const& sources) {
  all.add("setp." + names + type, "P=" + sources, setp<Compare>);
  all.add("setp." + names + ".{and,or,xor}" + type, "P=" + sources + "p", setp<Compare>);
  all.add("set." + names + "{.u32,.s32,.f32}" + type, "r=" + sources, set<Compare>);
  all.add("set." + names + ".{and,or,xor}{.u32,.s32,.f32}" + type, "r=" + sources + "p", set<Compare>);
}

}  // namespace

void define_compare(Opcodes& all) {
  std::string const either = "{eq,ne}", sign = "{eq,ne,lt,le,gt,ge}",
                    no_sign = "{eq,ne,lt,le,gt,ge,lo,ls,hi,hs}",
                    real = "{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,num,nan}";
  define_comparison<compare_numbers<u16>>(all, either, ".b16", "hh");
  define_comparison<compare_numbers<u32>>(all, either, ".b32", "rr");
  define_comparison<compare_numbers<u64>>(all, either, ".b64", "ll");
  define_comparison<compare_numbers<u16>>(all, no_sign, ".u16", "hh");
  define_comparison<compare_numbers<u32>>(all, no_sign, ".u32", "rr");
  define_comparison<compare_numbers<u64>>(all, no_sign, ".u64", "ll");
  define_comparison<compare_numbers<i16>>(all, sign, ".s16", "hh");
  define_comparison<compare_numbers<i32>>(all, sign, ".s32", "rr");
  define_comparison<compare_numbers<i64>>(all, sign, ".s64", "ll");
  define_comparison<compare_numbers<float>>(all, real, "{,.ftz}.f32", "rr");
  define_comparison<compare_numbers<double>>(all, real, ".f64", "ll");
  define_comparison<compare_halves<As16::f16>>(all, real, "{,.ftz}.f16", "hh");
  define_comparison<compare_halves<As16::bf16>>(all, real, ".bf16", "hh");

  all.add("setp." + real + "{,.ftz}.f16x2", "P=rr", setp_pairs);
  all.add("set." + real + "{,.ftz}.f16x2.f16x2", "r=rr", set_pairs);
  define(all, "selp.{b16,u16,s16}", [](u16 a, u16 b, bool c) { return c ? a : b; });
  define(all, "selp.{b32,u32,s32,f32}", [](u32 a, u32 b, bool c) { return c ? a : b; });
  define(all, "selp.{b64,u64,s64,f64}", [](u64 a, u64 b, bool c) { return c ? a : b; });
  define(all, "slct.{b32,u32,s32,f32}.s32", [](u32 a, u32 b, i32 c) { return c >= 0 ? a : b; });
  define(all, "slct.{b64,u64,s64,f64}.s32", [](u64 a, u64 b, i32 c) { return c >= 0 ? a : b; });
}

}  // namespace ptx
