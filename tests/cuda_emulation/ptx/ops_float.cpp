// Arithmetic of f32 and f64. The host's own is IEEE's; what PTX adds are directed rounding,
// flushing of subnormals, saturation and one NaN. Compiled with -frounding-math.

#include <cfenv>

#include "lanes.hpp"
#include "numbers.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

class Direction {
 public:
  explicit Direction(Rounding r) : set_(r != Rounding::nearest) {
    if (set_)
      std::fesetround(r == Rounding::zero ? FE_TOWARDZERO : r == Rounding::down ? FE_DOWNWARD : FE_UPWARD);
  }
  ~Direction() {
    if (set_) std::fesetround(FE_TONEAREST);
  }
  Direction(Direction const&) = delete;
  Direction& operator=(Direction const&) = delete;

 private:
  bool set_;
};

float enter(Instruction const& i, float x) { return i.mod.ftz ? flush(x) : x; }
double enter(Instruction const&, double x) { return x; }
template <class T>
T leave(Instruction const& i, T x) {
  x = enter(i, canonical(x));
  return i.mod.sat ? saturated(x) : x;
}

// As `define`, under the instruction's rounding.
template <class F>
void define_rounded(Opcodes& all, std::string pattern, F) {
  using Made = detail::Lanewise<F>;
  all.add(std::move(pattern), Made::operands(), [](Warp& w, Instruction const& i, Mask m) {
    Direction const direction(i.mod.rounding);
    Made::run(w, i, m);
  });
}

template <class T>
T smaller(Instruction const& i, T a, T b) {
  a = enter(i, a), b = enter(i, b);
  if (a != a || b != b) {
    if (i.mod.propagate_nan || (a != a && b != b)) return canonical(std::numeric_limits<T>::quiet_NaN());
    return a != a ? b : a;
  }
  return a < b || (a == b && std::signbit(a)) ? a : b;  // -0 is below +0
}
template <class T>
T larger(Instruction const& i, T a, T b) {
  return -smaller(i, -a, -b);
}

template <class T>
void define_type(Opcodes& all, std::string const& type) {
  std::string const how = sizeof(T) == 4 ? "{,.ftz}{,.sat}." : ".";
  std::string const flush_only = sizeof(T) == 4 ? "{,.ftz}." : ".";
  std::string const rounded = "{.rn,.rz,.rm,.rp}";
  using I = Instruction const&;
  define(all, "add" + how + type, [](I i, T a, T b) { return leave(i, enter(i, a) + enter(i, b)); });
  define(all, "sub" + how + type, [](I i, T a, T b) { return leave(i, enter(i, a) - enter(i, b)); });
  define(all, "mul" + how + type, [](I i, T a, T b) { return leave(i, enter(i, a) * enter(i, b)); });
  define_rounded(all, "add" + rounded + how + type, [](I i, T a, T b) { return leave(i, enter(i, a) + enter(i, b)); });
  define_rounded(all, "sub" + rounded + how + type, [](I i, T a, T b) { return leave(i, enter(i, a) - enter(i, b)); });
  define_rounded(all, "mul" + rounded + how + type, [](I i, T a, T b) { return leave(i, enter(i, a) * enter(i, b)); });
  define_rounded(all, "{fma,mad}" + rounded + how + type, [](I i, T a, T b, T c) {
    return leave(i, std::fma(enter(i, a), enter(i, b), enter(i, c)));
  });
  define_rounded(all, "div" + rounded + flush_only + type, [](I i, T a, T b) { return leave(i, enter(i, a) / enter(i, b)); });
  define_rounded(all, "rcp" + rounded + flush_only + type, [](I i, T a) { return leave(i, T(1) / enter(i, a)); });
  define_rounded(all, "sqrt" + rounded + flush_only + type, [](I i, T a) { return leave(i, std::sqrt(enter(i, a))); });
  define(all, "neg" + flush_only + type, [](I i, T a) { return -enter(i, a); });
  define(all, "abs" + flush_only + type, [](I i, T a) { return std::fabs(enter(i, a)); });
  define(all, "copysign." + type, [](T sign, T a) { return std::copysign(a, sign); });
  std::string const ends = sizeof(T) == 4 ? "{,.ftz}{,.NaN}." : ".";
  define(all, "min" + ends + type, [](I i, T a, T b) { return smaller(i, a, b); });
  define(all, "max" + ends + type, [](I i, T a, T b) {
    T const r = larger(i, a, b);
    return r != r ? canonical(r) : r;
  });
  define(all, "testp.finite." + type, [](T a) { return static_cast<bool>(std::isfinite(a)); });
  define(all, "testp.infinite." + type, [](T a) { return static_cast<bool>(std::isinf(a)); });
  define(all, "testp.number." + type, [](T a) { return a == a; });
  define(all, "testp.notanumber." + type, [](T a) { return a != a; });
}

}  // namespace

void define_float(Opcodes& all) {
  define_type<float>(all, "f32");
  define_type<double>(all, "f64");
}

}  // namespace ptx
