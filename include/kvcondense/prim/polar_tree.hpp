#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/level_codes.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// A block of 2^levels numbers as angles and one length: neighbours (2i, 2i + 1) are a length and an angle from 0 to 2 pi,
/// neighbouring lengths another length and an angle from 0 to pi / 2, and so on. angle: [level 1: n / 2] [level 2: n / 4] ...
/// The angle of (0, 0) is 0.
///
/// Numbers  double.
inline double polar_tree(const float* x, index_t levels, double* angle) {
  double length[max_head_dim];
  const index_t n = index_t{1} << levels;
  for (index_t i = 0; i < n; ++i) length[i] = static_cast<double>(x[i]);
  for (index_t half = n / 2; half > 0; half /= 2)
    for (index_t i = 0; i < half; ++i, ++angle) {
      const double a = length[2 * i], b = length[2 * i + 1];
      *angle = std::atan2(b, a);
      if (*angle < 0.0) *angle += 2.0 * std::numbers::pi;
      length[i] = std::sqrt(a * a + b * b);
    }
  return length[0];
}

/// Rows as blocks of 2^levels numbers in recursive polar form: codes of angles, and a length per block.
///
/// Source   Han et al., PolarQuant, arXiv:2502.02617.
/// Shapes   a row is, per level, a little-endian stream of the codes of all blocks, each level from a new byte, then the
///          lengths in fp16.
/// Numbers  level 1: 2^first_bits equal bins of the circle, read at their middle. Higher ones: the 2^bits levels of least
///          error for the angles of a vector that was rotated at random, whose density is sin(2 t)^(2^(level - 1) - 1).
struct PolarTree {
  static constexpr index_t most_levels = 5;

  index_t levels = 4;
  int first_bits = 4;
  int bits = 2;  ///< of levels above the first
  std::array<std::array<float, 4>, most_levels - 1> angle{};  ///< of levels 2, ...: what codes of the upper half add to pi / 4

  static PolarTree of(index_t levels, int first_bits, int bits) {
    PolarTree t{levels, first_bits, bits, {}};
    for (std::size_t l = 0; l < t.angle.size(); ++l) {
      const double power = std::ldexp(1.0, static_cast<int>(l) + 1) - 1.0;
      const auto level = lloyd_levels(std::size_t{1} << (bits - 1), std::numbers::pi / 4, std::numbers::pi / 4,
                                      [&](double a) { return std::pow(std::cos(2.0 * a), power); });
      for (std::size_t i = 0; i < 4; ++i) t.angle[l][i] = static_cast<float>(level[i]);
    }
    return t;
  }

  constexpr index_t block() const { return index_t{1} << levels; }
  constexpr int bits_of(index_t level) const { return level == 1 ? first_bits : bits; }
  /// Bytes of the codes of a level.
  constexpr index_t level_bytes(index_t level, index_t dim) const { return ((dim >> level) * bits_of(level) + 7) / 8; }
  constexpr index_t code_bytes(index_t dim) const {
    index_t sum = 0;
    for (index_t l = 1; l <= levels; ++l) sum += level_bytes(l, dim);
    return sum;
  }
  constexpr index_t row_bytes(index_t dim) const { return code_bytes(dim) + 2 * (dim / block()); }
  /// What a code of a level above the first stands for.
  constexpr float angle_of(index_t level, int code) const {
    const auto& half = angle[static_cast<std::size_t>(level - 2)];
    const int middle = 1 << (bits - 1);
    const float off = code >= middle ? half[static_cast<std::size_t>(code - middle)] : -half[static_cast<std::size_t>(middle - 1 - code)];
    return std::numbers::pi_v<float> / 4.0f + off;
  }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const { return static_cast<std::size_t>(slots * row_bytes(dim)); }
  constexpr index_t group_slots() const { return 1; }
  constexpr bool valid(index_t dim) const {
    return dim >= 1 && dim <= max_head_dim && levels >= 3 && levels <= most_levels && dim % block() == 0 && first_bits >= 1 &&
           first_bits <= 6 && bits >= 1 && bits <= 3 && angle[0][0] > 0.0f;
  }
  constexpr std::int64_t fingerprint() const {
    std::uint64_t f = static_cast<std::uint64_t>((levels * 8 + first_bits) * 8 + bits);
    for (const auto& half : angle)
      for (const float a : half) f = f * 0x100000001b3u ^ std::bit_cast<std::uint32_t>(a);
    return static_cast<std::int64_t>(f);
  }
};

static_assert(CodecDescription<PolarTree>);

}  // namespace kvcondense::prim
