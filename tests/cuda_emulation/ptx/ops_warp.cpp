// What the lanes of a warp do together.

#include <algorithm>
#include <bit>

#include "lanes.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

using I = Instruction const&;

template <class F>
void each(Mask m, F f) {
  for (; m; m &= m - 1) f(static_cast<u32>(std::countr_zero(m)));
}

void same_everywhere(Warp& w, I i, Mask m, u32 value) {
  u32 out[warp_size];
  std::fill_n(out, warp_size, value);
  w.out(i.o[0], m, out);
}

enum class Direction { up, down, butterfly, index };

template <Direction Where>
void shuffle(Warp& w, I i, Mask m) {
  u32 const *const a = w.in<u32>(i.o[1]), *const b = w.in<u32>(i.o[2]), *const c = w.in<u32>(i.o[3]);
  u32 out[warp_size] = {};
  Mask inside = 0;
  each(m, [&](u32 l) {
    u32 const segment = c[l] >> 8 & 31, clamp = c[l] & 31, by = b[l] & 31;
    u32 const last = (l & segment) | (clamp & ~segment);
    u32 from = 0;
    bool in = false;
    if (Where == Direction::up) {
      from = l - by;
      in = static_cast<i32>(l) - static_cast<i32>(by) >= static_cast<i32>(last);
    } else {
      from = Where == Direction::down        ? l + by
             : Where == Direction::butterfly ? l ^ by
                                             : (l & segment) | (by & ~segment);
      in = from <= last;
    }
    if (!in) from = l;
    if (!(m >> from & 1))
      throw Fault("shuffle: lane " + std::to_string(l) + " reads lane " + std::to_string(from) +
                  ", which does not take part");
    out[l] = a[from];
    inside |= Mask{in} << l;
  });
  w.out(i.o[0], m, out);
  if (i.o[0].second != Operand::none) w.out_mask(i.o[0].second, m, inside);
}

void ballot(Warp& w, I i, Mask m) { same_everywhere(w, i, m, w.mask_of(i.o[1]) & m); }
void vote_all(Warp& w, I i, Mask m) {
  w.out_mask(i.o[0].at, m, (w.mask_of(i.o[1]) & m) == m ? all_lanes : 0);
}
void vote_any(Warp& w, I i, Mask m) {
  w.out_mask(i.o[0].at, m, w.mask_of(i.o[1]) & m ? all_lanes : 0);
}
void vote_uniform(Warp& w, I i, Mask m) {
  Mask const votes = w.mask_of(i.o[1]) & m;
  w.out_mask(i.o[0].at, m, votes == m || votes == 0 ? all_lanes : 0);
}

template <class T>
void match_any(Warp& w, I i, Mask m) {
  T const* const a = w.in<T>(i.o[1]);
  u32 out[warp_size] = {};
  each(m, [&](u32 l) { each(m, [&](u32 k) { out[l] |= Mask{a[k] == a[l]} << k; }); });
  w.out(i.o[0], m, out);
}
template <class T>
void match_all(Warp& w, I i, Mask m) {
  T const* const a = w.in<T>(i.o[1]);
  T const first = a[std::countr_zero(m)];
  bool equal = true;
  each(m, [&](u32 l) { equal &= a[l] == first; });
  same_everywhere(w, i, m, equal ? m : 0);
  if (i.o[0].second != Operand::none) w.out_mask(i.o[0].second, m, equal ? all_lanes : 0);
}

template <class T, class F>
void define_redux(Opcodes& all, std::string const& what, F) {
  all.add("redux.sync." + what, "r=rM", [](Warp& w, I i, Mask m) {
    T const* const a = w.in<T>(i.o[1]);
    u32 const first = static_cast<u32>(std::countr_zero(m));
    T sum = a[first];
    each(m & (m - 1), [&](u32 l) { sum = static_cast<T>(F{}(sum, a[l])); });
    same_everywhere(w, i, m, static_cast<u32>(sum));
  }, Flow::next, Together::masked);
}

}  // namespace

void define_warp(Opcodes& all) {
  auto const masked = [&](std::string pattern, std::string operands, Handler run) {
    all.add(std::move(pattern), std::move(operands), run, Flow::next, Together::masked);
  };
  all.add("activemask.b32", "r", [](Warp& w, I i, Mask m) { same_everywhere(w, i, m, m); });
  masked("{bar,barrier}.warp.sync", "M", [](Warp& w, I, Mask) { w.block->shared.warp_barrier(w.index); });
  masked("shfl.sync.up.b32", "S=rrrM", shuffle<Direction::up>);
  masked("shfl.sync.down.b32", "S=rrrM", shuffle<Direction::down>);
  masked("shfl.sync.bfly.b32", "S=rrrM", shuffle<Direction::butterfly>);
  masked("shfl.sync.idx.b32", "S=rrrM", shuffle<Direction::index>);
  masked("vote{.sync.ballot,.ballot.sync}.b32", "r=pM", ballot);
  masked("vote{.sync.all,.all.sync}.pred", "p=pM", vote_all);
  masked("vote{.sync.any,.any.sync}.pred", "p=pM", vote_any);
  masked("vote{.sync.uni,.uni.sync}.pred", "p=pM", vote_uniform);
  masked("match{.any.sync,.sync.any}.b32", "r=rM", match_any<u32>);
  masked("match{.any.sync,.sync.any}.b64", "r=lM", match_any<u64>);
  masked("match{.all.sync,.sync.all}.b32", "S=rM", match_all<u32>);
  masked("match{.all.sync,.sync.all}.b64", "S=lM", match_all<u64>);
  define_redux<u32>(all, "add.{u32,s32}", [](u32 a, u32 b) { return a + b; });
  define_redux<u32>(all, "min.u32", [](u32 a, u32 b) { return std::min(a, b); });
  define_redux<u32>(all, "max.u32", [](u32 a, u32 b) { return std::max(a, b); });
  define_redux<i32>(all, "min.s32", [](i32 a, i32 b) { return std::min(a, b); });
  define_redux<i32>(all, "max.s32", [](i32 a, i32 b) { return std::max(a, b); });
  define_redux<u32>(all, "and.b32", [](u32 a, u32 b) { return a & b; });
  define_redux<u32>(all, "or.b32", [](u32 a, u32 b) { return a | b; });
  define_redux<u32>(all, "xor.b32", [](u32 a, u32 b) { return a ^ b; });
}

}  // namespace ptx
