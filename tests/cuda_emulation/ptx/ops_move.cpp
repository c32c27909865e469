// mov with its packing and unpacking, addresses between spaces.

#include <algorithm>

#include "lanes.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

u64 low(u64 x, u32 bits) { return bits >= 64 ? x : x & ((u64{1} << bits) - 1); }

// Special registers, names, and vectors of registers that make up one.
void move(Warp& w, Instruction const& i, Mask m) {
  Operand const &to = i.o[0], &from = i.o[1];
  u64 x[warp_size];
  u32 const bits = i.mod.types[0].bits;
  if (from.form == Operand::Form::vector) {
    u32 const part = bits / static_cast<u32>(from.parts.size());
    u64 sum[warp_size] = {};
    for (u32 n = 0; n < from.parts.size(); ++n) {
      w.read(from.parts[n], x);
      for (u32 l = 0; l < warp_size; ++l) sum[l] |= low(x[l], part) << (n * part);
    }
    return w.write(to, m, sum);
  }
  w.read(from, x);
  if (to.form != Operand::Form::vector) return w.write(to, m, x);
  u32 const part = bits / static_cast<u32>(to.parts.size());
  for (u32 n = 0; n < to.parts.size(); ++n) {
    u64 piece[warp_size];
    for (u32 l = 0; l < warp_size; ++l) piece[l] = low(x[l] >> (n * part), part);
    w.write(to.parts[n], m, piece);
  }
}

u64 window_of(Space space) {
  return space == Space::shared  ? shared_window
         : space == Space::local ? local_window
         : space == Space::param ? param_window
                                 : 0;
}

void to_generic(Warp& w, Instruction const& i, Mask m) {
  u64 x[warp_size];
  w.read(i.o[1], x);
  u64 const window = window_of(i.mod.space);
  // The address of a parameter carries its window already.
  if (i.mod.space != Space::param)
    for (u64& a : x) a += window;
  w.write(i.o[0], m, x);
}

void from_generic(Warp& w, Instruction const& i, Mask m) {
  u64 x[warp_size];
  w.read(i.o[1], x);
  if (i.mod.space != Space::param)
    for (u64& a : x) a -= window_of(i.mod.space);
  w.write(i.o[0], m, x);
}

}  // namespace

void define_move(Opcodes& all) {
  define(all, "mov.{b16,u16,s16,f16}", [](u16 a) { return a; });
  define(all, "mov.{b32,u32,s32,f32}", [](u32 a) { return a; });
  define(all, "mov.{b64,u64,s64,f64}", [](u64 a) { return a; });
  define(all, "mov.pred", [](bool a) { return a; });
  all.add("mov.{b16,u16,s16,b32,u32,s32,f32,b64,u64,s64,f64}", "x=x", move);
  all.add("mov.pred", "p=x", move);
  all.add("cvta.{global,const,shared,shared::cta,local,param}.u64", "l=x", to_generic);
  all.add("cvta.to.{global,const,shared,shared::cta,local,param}.u64", "l=x", from_generic);
  define(all, "isspacep.{shared,shared::cta}", [](u64 a) { return in_window(a, shared_window); });
  define(all, "isspacep.local", [](u64 a) { return in_window(a, local_window); });
  define(all, "isspacep.global", [](u64 a) {
    return !in_window(a, shared_window) && !in_window(a, local_window) && !in_window(a, param_window);
  });
}

}  // namespace ptx
