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

/// Rows as codes of levels that lie unevenly in a range, and the few numbers outside of it by themselves. The range is that of
/// a channel, found beforehand, or that of the row without its `outliers` / 2 largest and smallest numbers.
///
/// Source   KVQuant, arXiv:2401.18079.
/// Shapes   a row is ceil(dim * bits / 8) bytes of codes, a little-endian bit stream; without thresholds middle and half of its
///          range in fp16; then [outliers] addends in fp16 and as many places of one byte. Places without an outlier
///          have addend 0.
/// Numbers  with u = (x - middle) / half a code is the number of midpoints between levels at or below u; number = level *
///          half + middle + addend. An outlier lies strictly outside the thresholds; where there are more than fit, those
///          farthest outside are stored, and the others become the ends.
struct NuqRows {
  std::int32_t bits = 4;
  std::int32_t outliers = 2;
  std::int32_t channels = 0;        ///< of the thresholds
  const float* lower = nullptr;     ///< [channels]; the caller owns and keeps both; null: from each row
  const float* upper = nullptr;
  std::array<float, 16> level{};    ///< 2^bits, ascending

  constexpr bool fixed() const { return lower != nullptr; }
  constexpr float middle(index_t c) const { return 0.5f * (lower[c] + upper[c]); }
  constexpr float half(index_t c) const { return 0.5f * (upper[c] - lower[c]); }

  constexpr index_t code_bytes(index_t dim) const { return (dim * bits + 7) / 8; }
  constexpr index_t addends_at(index_t dim) const { return code_bytes(dim) + (fixed() ? 0 : 4); }
  constexpr index_t row_bytes(index_t dim) const { return addends_at(dim) + 3 * outliers; }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const { return static_cast<std::size_t>(slots * row_bytes(dim)); }
  constexpr index_t group_slots() const { return 1; }
  bool valid(index_t dim) const {
    if (bits < 1 || bits > 4 || dim < 1 || dim > max_head_dim || outliers < 0 || outliers >= dim) return false;
    if (!fixed() && outliers % 2 != 0) return false;
    for (std::size_t i = 0; i < std::size_t{1} << bits; ++i)
      if (!(std::fabs(level[i]) <= 1e3f) || (i > 0 && !(level[i] > level[i - 1]))) return false;
    if ((lower == nullptr) != (upper == nullptr) || (fixed() && channels != dim)) return false;
    for (index_t c = 0; c < (fixed() ? dim : 0); ++c)
      if (!(std::fabs(lower[c]) <= 0x1p120f && std::fabs(upper[c]) <= 0x1p120f && lower[c] <= upper[c])) return false;
    return true;
  }
  std::int64_t fingerprint() const {
    std::uint64_t f = static_cast<std::uint64_t>(bits * 4096 + outliers * 2 + (fixed() ? 1 : 0));
    const auto add = [&](float x) { f = f * 0x100000001b3u ^ std::bit_cast<std::uint32_t>(x); };
    for (const float l : level) add(l);
    for (index_t c = 0; c < (fixed() ? channels : 0); ++c) add(lower[c]), add(upper[c]);
    return static_cast<std::int64_t>(f);
  }
};

static_assert(CodecDescription<NuqRows>);

/// Levels of equally likely numbers of a normal density, the outermost at -1 and 1 (a normal float codebook).
inline std::array<float, 16> normal_levels(int bits) {
  std::array<double, 16> z{};
  const int n = 1 << bits;
  for (int i = 0; i < n; ++i) {
    const double p = (i + 0.5) / n;
    double lo = -9, hi = 9;  // the quantile by bisection of the error function
    for (int step = 0; step < 80; ++step) {
      const double t = 0.5 * (lo + hi);
      (0.5 * std::erfc(-t / std::sqrt(2.0)) < p ? lo : hi) = t;
    }
    z[static_cast<std::size_t>(i)] = 0.5 * (lo + hi);
  }
  std::array<float, 16> out{};
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) out[i] = static_cast<float>(z[i] / z[static_cast<std::size_t>(n - 1)]);
  return out;
}

}  // namespace kvcondense::prim
