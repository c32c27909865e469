// Approximations. The device's differ from the exact value by a few units in the last place and
// from chip to chip; here they are the exact value, rounded. Tests compare with a tolerance.

#include "lanes.hpp"
#include "numbers.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

using I = Instruction const&;

float in(I i, float x) { return i.mod.ftz ? flush(x) : x; }
float out(I i, double x) {
  float const f = canonical(static_cast<float>(x));
  return i.mod.ftz ? flush(f) : f;
}

template <class F>
void define_unary(Opcodes& all, std::string const& name, F) {
  define(all, name + ".approx{,.ftz}.f32",
         [](I i, float a) { return out(i, F{}(static_cast<double>(in(i, a)))); });
}

// Pairs of halves, element by element.
template <class F>
u32 pairwise(u32 a, F f) {
  return f(static_cast<u16>(a)) | u32{f(static_cast<u16>(a >> 16))} << 16;
}

}  // namespace

void define_approximate(Opcodes& all) {
  define_unary(all, "ex2", [](double x) { return std::exp2(x); });
  define_unary(all, "lg2", [](double x) { return std::log2(x); });
  define_unary(all, "rcp", [](double x) { return 1 / x; });
  define_unary(all, "sqrt", [](double x) { return std::sqrt(x); });
  define_unary(all, "rsqrt", [](double x) { return 1 / std::sqrt(x); });
  define_unary(all, "sin", [](double x) { return std::sin(x); });
  define_unary(all, "cos", [](double x) { return std::cos(x); });
  define(all, "tanh.approx.f32", [](I i, float a) { return out(i, std::tanh(static_cast<double>(a))); });
  // Divisors above 2^126 give 0, as the device's.
  define(all, "div.approx{,.ftz}.f32", [](I i, float a, float b) {
    float const x = in(i, a), y = in(i, b);
    if (std::fabs(y) > 0x1p126F && std::fabs(y) < std::numeric_limits<float>::infinity())
      return std::isinf(x) ? canonical(std::numeric_limits<float>::quiet_NaN())
                           : std::copysign(0.0F, x) * std::copysign(1.0F, y);
    return out(i, static_cast<double>(x) / static_cast<double>(y));
  });
  define(all, "div.full{,.ftz}.f32", [](I i, float a, float b) {
    return out(i, static_cast<double>(in(i, a)) / static_cast<double>(in(i, b)));
  });
  // The upper half of a double only, subnormals flushed.
  define(all, "rcp.approx.ftz.f64", [](double a) {
    double const x = std::fabs(a) < std::numeric_limits<double>::min() ? std::copysign(0.0, a) : a;
    u64 const bits = std::bit_cast<u64>(canonical(1 / x));
    return std::bit_cast<double>(bits & ~u64{0xffffffff});
  });
  define(all, "ex2.approx.f16", [](u16 a) { return round_f16(std::exp2(static_cast<double>(widen_f16(a)))); });
  define(all, "ex2.approx.f16x2", [](u32 a) {
    return pairwise(a, [](u16 h) { return round_f16(std::exp2(static_cast<double>(widen_f16(h)))); });
  });
  define(all, "tanh.approx.f16", [](u16 a) { return round_f16(std::tanh(static_cast<double>(widen_f16(a)))); });
  define(all, "tanh.approx.f16x2", [](u32 a) {
    return pairwise(a, [](u16 h) { return round_f16(std::tanh(static_cast<double>(widen_f16(h)))); });
  });
  define(all, "ex2.approx.ftz.bf16", [](u16 a) { return round_bf16(std::exp2(static_cast<double>(widen_bf16(a)))); });
  define(all, "ex2.approx.ftz.bf16x2", [](u32 a) {
    return pairwise(a, [](u16 h) { return round_bf16(std::exp2(static_cast<double>(widen_bf16(h)))); });
  });
}

}  // namespace ptx
