#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// What a row's scale is, besides the levels that its numbers go to.
enum class LevelScale : std::uint8_t {
  norm,           ///< the row's length
  unit,           ///< the row's length over that of its levels: decoded rows are as long as the row was
  least_squares,  ///< whatever is nearest to the row
};

/// The positive half, ascending, of Lloyd and Max's 2n levels for a density that is symmetric about 0 and ends at `end`.
///
/// Numbers  double; the fixed point of Lloyd's iteration over a grid of 4096 cells. n <= 8.
template <class Density>
std::array<double, 8> lloyd_levels(std::size_t n, double end, double spread, Density&& density) {
  constexpr std::size_t cells = 4096;
  const double step = end / cells;
  // Integrals of the density and of t times it, up to each cell.
  std::array<double, cells + 1> mass{}, first{};
  for (std::size_t i = 0; i < cells; ++i) {
    const double t = (static_cast<double>(i) + 0.5) * step, f = density(t);
    mass[i + 1] = mass[i] + f, first[i + 1] = first[i] + f * t;
  }
  // The density is constant in a cell; `moment` goes with the square of the place in it.
  const auto upto = [&](double t, bool moment) {
    const double at = std::fmin(t / step, static_cast<double>(cells));
    const auto i = static_cast<std::size_t>(at);
    if (i >= cells) return moment ? first[cells] : mass[cells];
    const double here = static_cast<double>(i), f = mass[i + 1] - mass[i];
    return moment ? first[i] + f * step * (at * at - here * here) / 2 : mass[i] + f * (at - here);
  };
  std::array<double, 8> level{};
  for (std::size_t i = 0; i < n; ++i) level[i] = (static_cast<double>(i) + 0.5) * spread / static_cast<double>(n);
  for (int round = 0; round < 4000; ++round) {
    std::array<double, 8> next{};
    double moved = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double a = i == 0 ? 0 : (level[i - 1] + level[i]) / 2, b = i + 1 == n ? end : (level[i] + level[i + 1]) / 2;
      const double m = upto(b, false) - upto(a, false);
      next[i] = m > 0 ? (upto(b, true) - upto(a, true)) / m : level[i];
      moved = std::fmax(moved, std::fabs(next[i] - level[i]));
    }
    level = next;
    if (moved < 1e-12) break;
  }
  return level;
}

/// Levels of the numbers of a unit vector of `dim` numbers that was rotated at random: Lloyd and Max's for the
/// density (1 - t^2)^((dim - 3) / 2); with `normal` those of a normal density of variance 1 / dim instead. They lie
/// symmetrically about 0: the positive half, ascending.
inline std::array<float, 8> fit_levels(int bits, index_t dim, bool normal = false) {
  const auto n = static_cast<std::size_t>(1 << (bits - 1));
  const double d = static_cast<double>(dim);  // levels are found in units of 1 / sqrt(dim)
  const auto level = lloyd_levels(n, normal ? 8.0 : std::fmin(8.0, std::sqrt(d)), 2.0, [&](double t) {
    return normal ? std::exp(-t * t / 2) : std::pow(1 - t * t / d, (d - 3) / 2);
  });
  std::array<float, 8> out{};
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<float>(level[i] / std::sqrt(d));
  return out;
}

/// Rows as a length and, for every number over that length, the nearest of 2^bits levels.
///
/// Shapes   a row is ceil(dim * bits / 8) bytes of codes, a little-endian bit stream, then its scale in fp16. Code c
///          is the number of midpoints between levels that are at or below the number.
struct LevelCodes {
  int bits = 4;
  LevelScale scale = LevelScale::unit;
  std::array<float, 8> level{};  ///< of codes from 2^(bits - 1) on; the others are their negatives

  KVCONDENSE_HD constexpr index_t code_bytes(index_t dim) const { return (dim * bits + 7) / 8; }
  KVCONDENSE_HD constexpr index_t row_bytes(index_t dim) const { return code_bytes(dim) + 2; }
  KVCONDENSE_HD constexpr float value(int code) const {
    const int half = 1 << (bits - 1);
    return code >= half ? level[static_cast<std::size_t>(code - half)] : -level[static_cast<std::size_t>(half - 1 - code)];
  }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const { return static_cast<std::size_t>(slots * row_bytes(dim)); }
  constexpr index_t group_slots() const { return 1; }
  constexpr bool valid(index_t dim) const {
    if (bits < 1 || bits > 4 || dim < 1 || dim > max_head_dim) return false;
    float last = 0.0f;
    for (int i = 0; i < 1 << (bits - 1); ++i) {
      if (!(level[static_cast<std::size_t>(i)] > last)) return false;
      last = level[static_cast<std::size_t>(i)];
    }
    return last < 1e3f;
  }
  constexpr std::int64_t fingerprint() const {
    std::uint64_t f = 0x70 + static_cast<std::uint64_t>(scale) * 8 + static_cast<std::uint64_t>(bits);
    for (const float l : level) f = f * 0x100000001b3u ^ std::bit_cast<std::uint32_t>(l);
    return static_cast<std::int64_t>(f);
  }
};

static_assert(CodecDescription<LevelCodes>);

}  // namespace kvcondense::prim
