#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// The smallest stored number that is not below `x`: what an upper bound becomes in a narrower type. NaN stays NaN;
/// what is too large becomes the type's largest number, so that a bound times zero is zero.
KVCONDENSE_HD inline float stored_above(DType type, float x) {
  if (type == DType::f32) return x;
  const bool f16 = type == DType::f16;
  const auto value = [&](std::uint16_t b) { return f16 ? kvcondense::detail::half_value(b) : kvcondense::detail::bfloat16_value(b); };
  std::uint16_t bits = f16 ? kvcondense::detail::half_bits(x) : kvcondense::detail::bfloat16_bits(x);
  if (value(bits) < x) {  // one step towards +inf
    if ((bits & 0x7fffu) == 0) bits = 1;
    else bits = static_cast<std::uint16_t>(bits + ((bits & 0x8000u) == 0 ? 1 : -1));
  }
  const float largest = largest_of(type);
  const float y = value(bits);
  return y > largest ? largest : y < -largest ? -largest : y;
}
/// The largest stored number that is not above `x`.
KVCONDENSE_HD inline float stored_below(DType type, float x) { return -stored_above(type, -x); }

/// Folds rows into one row.
///
///   largest(RowBlock<const float> rows, dim, float* out)    out[d] = max(out[d], rows[i][d]); NaN is left out
///   smallest(RowBlock<const float> rows, dim, float* out)
///   sum(RowBlock<const float> rows, dim, float* out)        out[d] += rows[i][d], in the order of rows
template <Backend B>
struct UnitFold {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
