// atom and red. The lanes of a warp take their turns in order.

#include <algorithm>
#include <bit>

#include "access.hpp"
#include "lanes.hpp"
#include "numbers.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

template <class T, class F>
void turns(Warp& w, Instruction const& i, Mask m, Operand const& address, F next, T* old) {
  u8* at[warp_size];
  locate_all(w, i, address, m, sizeof(T), Access::atomic, at);
  for (Mask rest = m; rest; rest &= rest - 1) {
    u32 const l = static_cast<u32>(std::countr_zero(rest));
    T value;
    std::memcpy(&value, at[l], sizeof value);
    old[l] = value;
    value = next(l, value);
    std::memcpy(at[l], &value, sizeof value);
  }
}

template <class T, class F>
void define_atom(Opcodes& all, std::string const& what, F) {
  std::string const where = "{,.relaxed,.acquire,.release,.acq_rel}{,.cta,.gpu,.sys}"
                            "{,.global,.shared,.shared::cta}." + what;
  std::string const letter(1, detail::letter<T>());
  all.add("atom" + where, letter + "=a" + letter, [](Warp& w, Instruction const& i, Mask m) {
    T const* const b = w.in<T>(i.o[2]);
    T old[warp_size] = {};
    turns<T>(w, i, m, i.o[1], [&](u32 l, T x) { return static_cast<T>(F{}(x, b[l])); }, old);
    w.out(i.o[0], m, old);
  });
  all.add("red" + where, "a" + letter, [](Warp& w, Instruction const& i, Mask m) {
    T const* const b = w.in<T>(i.o[1]);
    T old[warp_size];
    turns<T>(w, i, m, i.o[0], [&](u32 l, T x) { return static_cast<T>(F{}(x, b[l])); }, old);
  });
  // The old value is not wanted: "_".
  all.add("atom" + where, "xa" + letter, [](Warp& w, Instruction const& i, Mask m) {
    T const* const b = w.in<T>(i.o[2]);
    T old[warp_size];
    turns<T>(w, i, m, i.o[1], [&](u32 l, T x) { return static_cast<T>(F{}(x, b[l])); }, old);
  });
}

template <class T>
void define_cas(Opcodes& all, std::string const& type) {
  std::string const letter(1, detail::letter<T>());
  all.add("atom{,.relaxed,.acquire,.release,.acq_rel}{,.cta,.gpu,.sys}"
          "{,.global,.shared,.shared::cta}.cas." + type,
          letter + "=a" + letter + letter, [](Warp& w, Instruction const& i, Mask m) {
    T const *const compare = w.in<T>(i.o[2]), *const value = w.in<T>(i.o[3]);
    T old[warp_size] = {};
    turns<T>(w, i, m, i.o[1], [&](u32 l, T x) { return x == compare[l] ? value[l] : x; }, old);
    w.out(i.o[0], m, old);
  });
}

template <class T>
void define_order(Opcodes& all, std::string const& type) {
  define_atom<T>(all, "min." + type, [](T a, T b) { return std::min(a, b); });
  define_atom<T>(all, "max." + type, [](T a, T b) { return std::max(a, b); });
}

template <class T>
void define_bitwise(Opcodes& all, std::string const& type) {
  define_atom<T>(all, "and." + type, [](T a, T b) { return a & b; });
  define_atom<T>(all, "or." + type, [](T a, T b) { return a | b; });
  define_atom<T>(all, "xor." + type, [](T a, T b) { return a ^ b; });
  define_atom<T>(all, "exch." + type, [](T, T b) { return b; });
  define_cas<T>(all, type);
}

u16 add_f16(u16 a, u16 b) { return narrow_f16(widen_f16(a) + widen_f16(b)); }

}  // namespace

void define_atomic(Opcodes& all) {
  define_atom<u32>(all, "add.{u32,s32}", [](u32 a, u32 b) { return a + b; });
  define_atom<u64>(all, "add.u64", [](u64 a, u64 b) { return a + b; });
  // Subnormals of f32 are kept in shared memory and flushed in global memory by some chips.
  define_atom<float>(all, "add.f32", [](float a, float b) { return canonical(a + b); });
  define_atom<double>(all, "add.f64", [](double a, double b) { return canonical(a + b); });
  define_atom<u16>(all, "add.noftz.f16", [](u16 a, u16 b) { return add_f16(a, b); });
  define_atom<u32>(all, "add.noftz.f16x2", [](u32 a, u32 b) {
    return add_f16(static_cast<u16>(a), static_cast<u16>(b)) |
           u32{add_f16(static_cast<u16>(a >> 16), static_cast<u16>(b >> 16))} << 16;
  });
  define_order<u32>(all, "u32");
  define_order<i32>(all, "s32");
  define_order<u64>(all, "u64");
  define_order<i64>(all, "s64");
  define_bitwise<u32>(all, "b32");
  define_bitwise<u64>(all, "b64");
  define_cas<u16>(all, "b16");
  define_atom<u32>(all, "inc.u32", [](u32 a, u32 b) { return a >= b ? 0 : a + 1; });
  define_atom<u32>(all, "dec.u32", [](u32 a, u32 b) { return a == 0 || a > b ? b : a - 1; });
}

}  // namespace ptx
