#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <kvcondense/core/config.hpp>

namespace kvcondense {

/// How an exact part stores one number.
enum class DType : std::uint8_t { f32, f16, bf16 };

KVCONDENSE_HD constexpr std::size_t size_of(DType t) { return t == DType::f32 ? 4 : 2; }

inline constexpr float largest_half = 65504.0f;
inline constexpr float largest_to_half = 65519.0f;  ///< still rounds to it
inline constexpr float largest_wide = 3.38e38f;       ///< a hair below the largest bfloat16

/// The largest number of the type.
KVCONDENSE_HD constexpr float largest_of(DType t) {
  return t == DType::f16 ? largest_half : t == DType::bf16 ? 0x1.fep127f : 0x1.fffffep127f;
}
/// Numbers up to this size are surely finite once they are stored; a cache takes no larger ones. The wider types have one limit.
KVCONDENSE_HD constexpr float largest_taken(DType t) { return t == DType::f16 ? largest_to_half : largest_wide; }
/// What a cache makes of larger ones that it comes to by itself.
KVCONDENSE_HD constexpr float largest_kept(DType t) { return t == DType::f16 ? largest_half : largest_wide; }

/// Whether a length can be stored next to exactly, in 32 bits beside 32-bit numbers and as a half beside others: as a normal number, or as 0.
KVCONDENSE_HD constexpr bool holds_length(DType t, double length) {
  if (length == 0.0) return true;
  return t == DType::f32 ? length >= 0x1p-126 && length <= 3.4e38 : length >= 0x1p-14 && length <= static_cast<double>(largest_half);
}

constexpr const char* to_string(DType t) {
  return t == DType::f32 ? "f32" : t == DType::f16 ? "f16" : "bf16";
}

namespace detail {

/// IEEE binary16 from binary32, round to nearest even; NaN stays NaN, overflow becomes infinity.
/// Integer arithmetic only, so that every host rounds alike and loops vectorise.
KVCONDENSE_HD constexpr std::uint16_t half_bits(float value) {
  const std::uint32_t x = detail::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (x >> 16) & 0x8000u;
  const std::uint32_t mag = x & 0x7fffffffu;
  if (mag > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (mag >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (mag < 0x33000001u) return static_cast<std::uint16_t>(sign);
  std::uint32_t bits;
  if (mag < 0x38800000u) {  // subnormal half: shift the full mantissa into place, rounding to even
    const std::uint32_t shift = 126u - (mag >> 23);
    const std::uint32_t mant = (mag & 0x7fffffu) | 0x800000u;
    const std::uint32_t rest = mant & ((1u << shift) - 1u);
    const std::uint32_t tie = 1u << (shift - 1u);
    bits = mant >> shift;
    bits += static_cast<std::uint32_t>(rest > tie || (rest == tie && (bits & 1u)));
  } else {
    bits = (mag + 0xfffu + ((mag >> 13) & 1u) - 0x38000000u) >> 13;
  }
  return static_cast<std::uint16_t>(sign | bits);
}

KVCONDENSE_HD constexpr float half_value(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t mag = h & 0x7fffu;
  // Move exponent and mantissa into place, then let one multiplication by 2^112 fix the bias; it is
  // exact for normals and subnormals alike.
  const float scaled = detail::bit_cast<float>(mag << 13) * 0x1p112f;
  const std::uint32_t finite = detail::bit_cast<std::uint32_t>(scaled);
  const std::uint32_t bits = mag >= 0x7c00u ? (0x7f800000u | ((mag & 0x3ffu) << 13)) : finite;
  return detail::bit_cast<float>(sign | bits);
}

KVCONDENSE_HD constexpr std::uint16_t bfloat16_bits(float value) {
  const std::uint32_t x = detail::bit_cast<std::uint32_t>(value);
  if ((x & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((x >> 16) | 0x40u);
  return static_cast<std::uint16_t>((x + 0x7fffu + ((x >> 16) & 1u)) >> 16);
}

KVCONDENSE_HD constexpr float bfloat16_value(std::uint16_t b) {
  return detail::bit_cast<float>(static_cast<std::uint32_t>(b) << 16);
}

}  // namespace detail

/// IEEE binary16 in storage; arithmetic happens in float.
struct half {
  std::uint16_t bits = 0;
  half() = default;
  KVCONDENSE_HD constexpr explicit half(float v) : bits(detail::half_bits(v)) {}
  KVCONDENSE_HD constexpr explicit operator float() const { return detail::half_value(bits); }
};

/// bfloat16 in storage; arithmetic happens in float.
struct bfloat16 {
  std::uint16_t bits = 0;
  bfloat16() = default;
  KVCONDENSE_HD constexpr explicit bfloat16(float v) : bits(detail::bfloat16_bits(v)) {}
  KVCONDENSE_HD constexpr explicit operator float() const { return detail::bfloat16_value(bits); }
};

static_assert(sizeof(half) == 2 && sizeof(bfloat16) == 2);

/// Element types of a view of keys and a view of values that may enter a cache together.
template <class K, class V>
concept StoredNumbers =
    std::same_as<std::remove_const_t<K>, std::remove_const_t<V>> &&
    (std::same_as<std::remove_const_t<K>, float> || std::same_as<std::remove_const_t<K>, half> ||
     std::same_as<std::remove_const_t<K>, bfloat16>);

}  // namespace kvcondense
