// f16 and bf16, single and in pairs: computed wide, rounded once to nearest even.

#include "lanes.hpp"
#include "numbers.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

using I = Instruction const&;

struct F16 {
  static float wide(u16 h) { return widen_f16(h); }
  static u16 round(float x) { return narrow_f16(x); }
  static u16 product(float a, float b) { return narrow_f16(a * b); }  // exact in a float
  // A product and a sum of f16 lose nothing in a double that rounding to f16 could see.
  static u16 round_fma(float a, float b, float c) {
    return round_f16(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
  }
  static constexpr u16 smallest_normal = 0x0400, one = 0x3c00, infinity = 0x7c00;
};
struct BF16 {
  static float wide(u16 h) { return widen_bf16(h); }
  static u16 round(float x) { return narrow_bf16(x); }
  static u16 product(float a, float b) {
    return round_bf16(static_cast<double>(a) * static_cast<double>(b));
  }
  static u16 round_fma(float a, float b, float c) {
    return round_bf16(odd_fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c)));
  }
  static constexpr u16 smallest_normal = 0x0080, one = 0x3f80, infinity = 0x7f80;
};

template <class N>
u16 flushed(I i, u16 h) {
  return i.mod.ftz && (h & 0x7fff) < N::smallest_normal ? h & 0x8000 : h;
}
template <class N>
bool is_nan(u16 h) {
  return (h & 0x7fff) > N::infinity;
}
template <class N>
u16 leave(I i, u16 h) {
  h = flushed<N>(i, h);
  if (i.mod.sat) {
    if (is_nan<N>(h) || h & 0x8000) return 0;
    return h > N::one ? N::one : h;
  }
  if (i.mod.relu && !is_nan<N>(h) && h & 0x8000) return 0;
  return h;
}

template <class N>
struct Add {
  u16 operator()(I i, u16 a, u16 b) const {
    return leave<N>(i, N::round(N::wide(flushed<N>(i, a)) + N::wide(flushed<N>(i, b))));
  }
};
template <class N>
struct Subtract {
  u16 operator()(I i, u16 a, u16 b) const {
    return leave<N>(i, N::round(N::wide(flushed<N>(i, a)) - N::wide(flushed<N>(i, b))));
  }
};
template <class N>
struct Multiply {
  u16 operator()(I i, u16 a, u16 b) const {
    return leave<N>(i, N::product(N::wide(flushed<N>(i, a)), N::wide(flushed<N>(i, b))));
  }
};
template <class N>
struct Fma {
  u16 operator()(I i, u16 a, u16 b, u16 c) const {
    return leave<N>(i, N::round_fma(N::wide(flushed<N>(i, a)), N::wide(flushed<N>(i, b)),
                                    N::wide(flushed<N>(i, c))));
  }
};
template <class N, bool Larger>
struct Extreme {
  u16 operator()(I i, u16 a, u16 b) const {
    a = flushed<N>(i, a), b = flushed<N>(i, b);
    if (is_nan<N>(a) || is_nan<N>(b)) {
      if (i.mod.propagate_nan || (is_nan<N>(a) && is_nan<N>(b))) return 0x7fff;
      return is_nan<N>(a) ? b : a;
    }
    float const x = N::wide(a), y = N::wide(b);
    bool const a_below = x < y || (x == y && a & 0x8000);
    return a_below != Larger ? a : b;
  }
};
template <class N>
struct Negate {
  u16 operator()(I i, u16 a) const { return flushed<N>(i, a) ^ 0x8000; }
};
template <class N>
struct Magnitude {
  u16 operator()(I i, u16 a) const { return flushed<N>(i, a) & 0x7fff; }
};

// f as an instruction of one number, and of two in a register.
template <class F>
void define1(Opcodes& all, std::string const& pattern, F) {
  define(all, pattern, [](I i, u16 a) -> u16 { return F{}(i, a); });
  define(all, pattern + "x2", [](I i, u32 a) -> u32 {
    return F{}(i, static_cast<u16>(a)) | u32{F{}(i, static_cast<u16>(a >> 16))} << 16;
  });
}
template <class F>
void define2(Opcodes& all, std::string const& pattern, F) {
  define(all, pattern, [](I i, u16 a, u16 b) -> u16 { return F{}(i, a, b); });
  define(all, pattern + "x2", [](I i, u32 a, u32 b) -> u32 {
    return F{}(i, static_cast<u16>(a), static_cast<u16>(b)) |
           u32{F{}(i, static_cast<u16>(a >> 16), static_cast<u16>(b >> 16))} << 16;
  });
}
template <class F>
void define3(Opcodes& all, std::string const& pattern, F) {
  define(all, pattern, [](I i, u16 a, u16 b, u16 c) -> u16 { return F{}(i, a, b, c); });
  define(all, pattern + "x2", [](I i, u32 a, u32 b, u32 c) -> u32 {
    return F{}(i, static_cast<u16>(a), static_cast<u16>(b), static_cast<u16>(c)) |
           u32{F{}(i, static_cast<u16>(a >> 16), static_cast<u16>(b >> 16), static_cast<u16>(c >> 16))} << 16;
  });
}

}  // namespace

void define_half(Opcodes& all) {
  define2(all, "add{,.rn}{,.ftz}{,.sat}.f16", Add<F16>{});
  define2(all, "sub{,.rn}{,.ftz}{,.sat}.f16", Subtract<F16>{});
  define2(all, "mul{,.rn}{,.ftz}{,.sat}.f16", Multiply<F16>{});
  define3(all, "fma.rn{,.ftz}{,.sat,.relu}.f16", Fma<F16>{});
  define2(all, "min{,.ftz}{,.NaN}.f16", Extreme<F16, false>{});
  define2(all, "max{,.ftz}{,.NaN}.f16", Extreme<F16, true>{});
  define1(all, "neg{,.ftz}.f16", Negate<F16>{});
  define1(all, "abs{,.ftz}.f16", Magnitude<F16>{});

  define2(all, "add{,.rn}.bf16", Add<BF16>{});
  define2(all, "sub{,.rn}.bf16", Subtract<BF16>{});
  define2(all, "mul{,.rn}.bf16", Multiply<BF16>{});
  define3(all, "fma.rn{,.relu}.bf16", Fma<BF16>{});
  define2(all, "min{,.NaN}.bf16", Extreme<BF16, false>{});
  define2(all, "max{,.NaN}.bf16", Extreme<BF16, true>{});
  define1(all, "neg.bf16", Negate<BF16>{});
  define1(all, "abs.bf16", Magnitude<BF16>{});
}

}  // namespace ptx
