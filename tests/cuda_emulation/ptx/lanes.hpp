#pragma once
// From a function of numbers to an instruction over the lanes of a warp: the types of its
// parameters say what the operands are.

#include <array>
#include <type_traits>
#include <utility>

#include "machine.hpp"

namespace ptx {
namespace detail {

template <class T>
struct In {
  T const* lanes;
  In(Warp const& w, Operand const& o) : lanes(w.in<T>(o)) {}
  T operator[](u32 lane) const { return lanes[lane]; }
};
template <>
struct In<bool> {
  Mask mask;
  In(Warp const& w, Operand const& o) : mask(w.mask_of(o)) {}
  bool operator[](u32 lane) const { return mask >> lane & 1; }
};

template <class T>
struct Out {
  T lanes[warp_size];
  void set(u32 lane, T value) { lanes[lane] = value; }
  void store(Warp& w, Operand const& o, Mask m) const { w.out(o, m, lanes); }
};
template <>
struct Out<bool> {
  Mask mask = 0;
  void set(u32 lane, bool value) { mask |= Mask{value} << lane; }
  void store(Warp& w, Operand const& o, Mask m) const { w.out_mask(o.at, m, mask); }
};

template <class T>
constexpr char letter() {
  if constexpr (std::is_same_v<T, bool>) return 'p';
  return sizeof(T) == 2 ? 'h' : sizeof(T) == 4 ? 'r' : 'l';
}

// F may take the instruction first.
template <class F, class Call = decltype(&F::operator())>
struct Lanewise;

template <class F, class R, class... A>
struct Lanewise<F, R (F::*)(A...) const> {
  static std::string operands() { return {letter<R>(), '=', letter<A>()...}; }
  static void run(Warp& w, Instruction const& i, Mask m) {
    run(w, i, m, std::index_sequence_for<A...>{});
  }
  template <std::size_t... N>
  static void run(Warp& w, Instruction const& i, Mask m, std::index_sequence<N...>) {
    loop(w, i, m, In<A>(w, i.o[N + 1])...);
  }
  static void loop(Warp& w, Instruction const& i, Mask m, In<A>... in) {
    Out<R> out;
    for (u32 lane = 0; lane < warp_size; ++lane) out.set(lane, F{}(in[lane]...));
    out.store(w, i.o[0], m);
  }
};

template <class F, class R, class... A>
struct Lanewise<F, R (F::*)(Instruction const&, A...) const> {
  static std::string operands() { return {letter<R>(), '=', letter<A>()...}; }
  static void run(Warp& w, Instruction const& i, Mask m) {
    run(w, i, m, std::index_sequence_for<A...>{});
  }
  template <std::size_t... N>
  static void run(Warp& w, Instruction const& i, Mask m, std::index_sequence<N...>) {
    loop(w, i, m, In<A>(w, i.o[N + 1])...);
  }
  static void loop(Warp& w, Instruction const& i, Mask m, In<A>... in) {
    Out<R> out;
    for (u32 lane = 0; lane < warp_size; ++lane) out.set(lane, F{}(i, in[lane]...));
    out.store(w, i.o[0], m);
  }
};

}  // namespace detail

/// Defines `pattern` as `f` in every lane.
template <class Opcodes, class F>
void define(Opcodes& all, std::string pattern, F) {
  using Made = detail::Lanewise<F>;
  all.add(std::move(pattern), Made::operands(), [](Warp& w, Instruction const& i, Mask m) {
    Made::run(w, i, m);
  });
}

}  // namespace ptx
