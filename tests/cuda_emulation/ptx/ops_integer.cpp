// Integer arithmetic.

#include <algorithm>
#include <limits>

#include "lanes.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

template <class T>
constexpr const char* name() {
  if constexpr (std::is_same_v<T, u16>) return "u16";
  if constexpr (std::is_same_v<T, i16>) return "s16";
  if constexpr (std::is_same_v<T, u32>) return "u32";
  if constexpr (std::is_same_v<T, i32>) return "s32";
  if constexpr (std::is_same_v<T, u64>) return "u64";
  if constexpr (std::is_same_v<T, i64>) return "s64";
}
template <class T>
using Twice = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, i32, u32>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, i64, u64>,
                       std::conditional_t<std::is_signed_v<T>, i128, u128>>>;
template <class T>
using Wrap = std::conditional_t<sizeof(T) <= 4, u32, u64>;  // where overflow wraps

template <class T>
T wrap_add(T a, T b) {
  return static_cast<T>(static_cast<Wrap<T>>(a) + static_cast<Wrap<T>>(b));
}
template <class T>
T low_product(T a, T b) {
  return static_cast<T>(static_cast<Wrap<T>>(a) * static_cast<Wrap<T>>(b));
}
template <class T>
T high_product(T a, T b) {
  return static_cast<T>((static_cast<Twice<T>>(a) * static_cast<Twice<T>>(b)) >> (8 * sizeof(T)));
}

template <class T>
void define_type(Opcodes& all) {
  std::string const type = name<T>();
  define(all, "add." + type, [](T a, T b) { return wrap_add(a, b); });
  define(all, "sub." + type, [](T a, T b) {
    return static_cast<T>(static_cast<Wrap<T>>(a) - static_cast<Wrap<T>>(b));
  });
  define(all, "mul.lo." + type, [](T a, T b) { return low_product(a, b); });
  define(all, "mul.hi." + type, [](T a, T b) { return high_product(a, b); });
  define(all, "mad.lo." + type, [](T a, T b, T c) { return wrap_add(low_product(a, b), c); });
  define(all, "mad.hi." + type, [](T a, T b, T c) { return wrap_add(high_product(a, b), c); });
  // Division by zero gives all ones, as the device does.
  define(all, "div." + type, [](T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(Wrap<T>{0} - static_cast<Wrap<T>>(a));
    return static_cast<T>(a / b);
  });
  define(all, "rem." + type, [](T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return T{0};
    return static_cast<T>(a % b);
  });
  define(all, "min." + type, [](T a, T b) { return std::min(a, b); });
  define(all, "max." + type, [](T a, T b) { return std::max(a, b); });
  define(all, "sad." + type, [](T a, T b, T c) {
    auto const wa = static_cast<Wrap<T>>(a), wb = static_cast<Wrap<T>>(b);
    return wrap_add(static_cast<T>(a < b ? wb - wa : wa - wb), c);
  });
  if constexpr (std::is_signed_v<T>) {
    define(all, "neg." + type, [](T a) { return static_cast<T>(Wrap<T>{0} - static_cast<Wrap<T>>(a)); });
    define(all, "abs." + type, [](T a) {
      return a < 0 ? static_cast<T>(Wrap<T>{0} - static_cast<Wrap<T>>(a)) : a;
    });
  }
  if constexpr (sizeof(T) <= 4) {
    define(all, "mul.wide." + type, [](T a, T b) {
      return static_cast<Twice<T>>(static_cast<Twice<T>>(a) * static_cast<Twice<T>>(b));
    });
    define(all, "mad.wide." + type, [](T a, T b, Twice<T> c) {
      return wrap_add(static_cast<Twice<T>>(static_cast<Twice<T>>(a) * static_cast<Twice<T>>(b)), c);
    });
  }
}

i32 saturate(i64 x) {
  return static_cast<i32>(std::clamp<i64>(x, std::numeric_limits<i32>::min(), std::numeric_limits<i32>::max()));
}

// Byte `n` of `x`, as an element of a dot product.
template <bool Signed>
i32 byte_of(u32 x, u32 n) {
  u8 const b = static_cast<u8>(x >> (8 * n));
  return Signed ? static_cast<i8>(b) : b;
}
template <bool SignedA, bool SignedB>
u32 dot4(u32 a, u32 b, u32 c) {
  for (u32 n = 0; n < 4; ++n) c += static_cast<u32>(byte_of<SignedA>(a, n) * byte_of<SignedB>(b, n));
  return c;
}

}  // namespace

void define_integer(Opcodes& all) {
  define_type<u16>(all);
  define_type<i16>(all);
  define_type<u32>(all);
  define_type<i32>(all);
  define_type<u64>(all);
  define_type<i64>(all);
  define(all, "add.sat.s32", [](i32 a, i32 b) { return saturate(i64{a} + b); });
  define(all, "sub.sat.s32", [](i32 a, i32 b) { return saturate(i64{a} - b); });
  define(all, "dp4a.u32.u32", [](u32 a, u32 b, u32 c) { return dot4<false, false>(a, b, c); });
  define(all, "dp4a.s32.s32", [](u32 a, u32 b, u32 c) { return dot4<true, true>(a, b, c); });
  define(all, "dp4a.u32.s32", [](u32 a, u32 b, u32 c) { return dot4<false, true>(a, b, c); });
  define(all, "dp4a.s32.u32", [](u32 a, u32 b, u32 c) { return dot4<true, false>(a, b, c); });
}

}  // namespace ptx
