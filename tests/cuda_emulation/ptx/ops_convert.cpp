// cvt. One general function reads a number exactly, rounds it once and writes it; the forms that
// kernels are full of have their own, before it.

#include <algorithm>

#include "lanes.hpp"
#include "numbers.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

using I = Instruction const&;

bool is_float(Type t) { return t.kind == Kind::floating || t.kind == Kind::bfloat; }
Format format_of(Type t) {
  return t.kind == Kind::bfloat ? bf16_format
         : t.bits == 16         ? f16_format
         : t.bits == 32         ? f32_format
                                : f64_format;
}
u64 low(u64 x, u32 bits) { return bits >= 64 ? x : x & ((u64{1} << bits) - 1); }
u64 sign_extended(u64 x, u32 bits) {
  u32 const shift = 64 - std::min(bits, 64U);
  return static_cast<u64>(static_cast<i64>(x << shift) >> shift);
}

double as_double(Type t, u64 bits, bool ftz) {
  if (t.kind == Kind::bfloat) return static_cast<double>(widen_bf16(static_cast<u16>(bits)));
  if (t.bits == 16) return static_cast<double>(widen_f16(static_cast<u16>(bits)));
  if (t.bits == 64) return std::bit_cast<double>(bits);
  float const f = std::bit_cast<float>(static_cast<u32>(bits));
  return static_cast<double>(ftz ? flush(f) : f);
}

double to_whole(double x, Rounding r) {
  switch (r) {
    case Rounding::nearest: return std::nearbyint(x);
    case Rounding::zero: return std::trunc(x);
    case Rounding::down: return std::floor(x);
    case Rounding::up: return std::ceil(x);
  }
  return x;
}

// Beyond the range the nearest end; NaN is zero, or the first bit alone where 64 bits take part.
u64 to_integer(Type to, bool wide_source, double x) {
  bool const is_signed = to.is_signed();
  if (x != x) return wide_source || to.bits == 64 ? u64{1} << (to.bits - 1) : 0;
  double const end = std::ldexp(1.0, is_signed ? to.bits - 1 : to.bits);
  u64 const top = low(~u64{0}, is_signed ? to.bits - 1U : to.bits);
  if (x >= end) return top;
  if (is_signed) return x < -end ? ~top : static_cast<u64>(static_cast<i64>(x));
  return x <= 0 ? 0 : static_cast<u64>(x);
}

u64 saturate_float(Type to, u64 bits) {
  double const x = as_double(to, bits, false);
  if (!(x > 0)) return 0;
  return x < 1 ? bits : narrow(format_of(to), 1, Rounding::nearest);
}

u64 integer_to_integer(I i, Type to, Type from, u64 bits) {
  u64 const x = from.is_signed() ? sign_extended(bits, from.bits) : low(bits, from.bits);
  if (!i.mod.sat) return x;
  bool const negative = from.is_signed() && x >> 63;
  u64 const top = low(~u64{0}, to.is_signed() ? to.bits - 1U : to.bits);
  if (!negative) return std::min(x, top);
  if (!to.is_signed()) return 0;
  return static_cast<u64>(std::max(static_cast<i64>(x), static_cast<i64>(~top)));
}

u64 convert(I i, u64 bits) {
  Type const to = i.mod.types[0], from = i.mod.types[1];
  u64 result;
  if (!is_float(from)) {
    if (!is_float(to)) {
      result = integer_to_integer(i, to, from, bits);
    } else {
      u64 const x = from.is_signed() ? sign_extended(bits, from.bits) : low(bits, from.bits);
      bool const negative = from.is_signed() && x >> 63;
      result = round_to(format_of(to), negative, negative ? u64{0} - x : x, 0, i.mod.rounding);
    }
  } else {
    double x = as_double(from, low(bits, from.bits), i.mod.ftz && from.bits == 32);
    if (!is_float(to)) {
      result = to_integer(to, from.bits == 64, to_whole(x, i.mod.rounding));
    } else {
      if (i.mod.to_integer) x = to_whole(x, i.mod.rounding);
      // Rounding to a whole number leaves nothing for a second rounding: the format is the same.
      result = narrow(format_of(to), x, i.mod.to_integer ? Rounding::nearest : i.mod.rounding);
      if (i.mod.ftz && to.bits == 32 && to.kind == Kind::floating)
        result = std::bit_cast<u32>(flush(std::bit_cast<float>(static_cast<u32>(result))));
    }
  }
  if (is_float(to)) {
    if (i.mod.sat) result = saturate_float(to, result);
    if (i.mod.relu && result >> (to.bits - 1) & 1) result = 0;
    return result;
  }
  // A register wider than the type is filled by its sign.
  return to.is_signed() ? sign_extended(result, to.bits) : low(result, to.bits);
}

void convert_lanes(Warp& w, I i, Mask m) {
  u64 x[warp_size];
  w.read(i.o[1], x);
  for (u32 l = 0; l < warp_size; ++l) x[l] = convert(i, x[l]);
  w.write(i.o[0], m, x);
}

template <class N>
u16 packed(I i, float x, N nearest, Format format) {
  u16 const h = i.mod.rounding == Rounding::nearest
                    ? nearest(x)
                    : static_cast<u16>(narrow(format, static_cast<double>(x), i.mod.rounding));
  return i.mod.relu && h & 0x8000 ? 0 : h;
}

}  // namespace

void define_convert(Opcodes& all) {
  define(all, "cvt.u32.u16", [](u16 a) -> u32 { return a; });
  define(all, "cvt.s32.s16", [](i16 a) -> i32 { return a; });
  define(all, "cvt.u64.u32", [](u32 a) -> u64 { return a; });
  define(all, "cvt.s64.s32", [](i32 a) -> i64 { return a; });
  define(all, "cvt.u32.u64", [](u64 a) { return static_cast<u32>(a); });
  define(all, "cvt.u16.u32", [](u32 a) { return static_cast<u16>(a); });
  define(all, "cvt.rn.f32.s32", [](i32 a) { return static_cast<float>(a); });
  define(all, "cvt.rn.f32.u32", [](u32 a) { return static_cast<float>(a); });
  define(all, "cvt.f32.f16", [](u16 a) { return canonical(widen_f16(a)); });
  define(all, "cvt.f32.bf16", [](u16 a) { return canonical(widen_bf16(a)); });
  define(all, "cvt.f64.f32", [](float a) { return canonical(static_cast<double>(a)); });
  define(all, "cvt.rn.f16.f32", [](float a) { return narrow_f16(a); });
  define(all, "cvt.rn.bf16.f32", [](float a) { return narrow_bf16(a); });
  // The first source is the upper half.
  define(all, "cvt.{rn,rz}{,.relu}.f16x2.f32", [](I i, float a, float b) {
    return packed(i, b, narrow_f16, f16_format) | u32{packed(i, a, narrow_f16, f16_format)} << 16;
  });
  define(all, "cvt.{rn,rz}{,.relu}.bf16x2.f32", [](I i, float a, float b) {
    return packed(i, b, narrow_bf16, bf16_format) | u32{packed(i, a, narrow_bf16, bf16_format)} << 16;
  });

  std::string const integer = "{u8,u16,u32,u64,s8,s16,s32,s64}";
  auto const add = [&](std::string pattern) { all.add(std::move(pattern), "x=x", convert_lanes); };
  add("cvt{,.sat}." + integer + "." + integer);
  add("cvt.{rni,rzi,rmi,rpi}{,.sat}." + integer + ".{f16,f64}");
  add("cvt.{rni,rzi,rmi,rpi}{,.ftz}{,.sat}." + integer + ".f32");
  add("cvt.{rn,rz,rm,rp}{,.sat}.{f16,f32,f64}." + integer);
  add("cvt.{rn,rz,rm,rp}{,.sat}.f16.f64");
  add("cvt.{rn,rz,rm,rp}{,.ftz}{,.sat}.{f16.f32,f32.f64}");
  add("cvt.{rn,rz}{,.relu}.{f16,bf16}.f32");
  add("cvt{,.ftz}{,.sat}.{f32.f16,f64.f32}");
  add("cvt{,.sat}.f64.f16");
  add("cvt{,.rni,.rzi,.rmi,.rpi}{,.ftz}{,.sat}.f32.f32");
  add("cvt{,.rni,.rzi,.rmi,.rpi}{,.sat}.{f16.f16,f64.f64}");
}

}  // namespace ptx
