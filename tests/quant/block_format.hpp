#pragma once

#include <cmath>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/block_codes.hpp>

#include <support/fill.hpp>
#include <support/oracle.hpp>

// What the tests of fp8, mx, nvfp4 and ggml share: rows in one page, and errors by block.

namespace kvcondense::test {

/// Rows coded into one page.
struct BlockPage {
  using Codec = prim::PageCodec<Cpu, prim::BlockCodes>;

  BlockPage(const prim::BlockCodes& c, const std::vector<float>& rows, index_t d)
      : codec(c), dim(d), slots(static_cast<index_t>(rows.size()) / d), bytes(c.page_bytes(slots, dim)) {
    REQUIRE(codec.valid(dim));
    repaired = Codec::encode(codec, span(), 0, slots, {rows.data(), slots, dim});
  }
  prim::PageSpan span() { return {bytes.data(), slots, dim}; }
  std::vector<float> decoded() {
    std::vector<float> out(static_cast<std::size_t>(slots * dim));
    Codec::decode(codec, span(), 0, slots, {out.data(), slots, dim});
    return out;
  }
  /// Bytes [from, to) in hexadecimal.
  std::string hex(index_t from, index_t to) const {
    std::string text;
    for (index_t i = from; i < to; ++i) {
      const int b = static_cast<int>(bytes[static_cast<std::size_t>(i)]);
      text += "0123456789abcdef"[b / 16];
      text += "0123456789abcdef"[b % 16];
    }
    return text;
  }
  int byte(index_t i) const { return static_cast<int>(bytes[static_cast<std::size_t>(i)]); }

  prim::BlockCodes codec;
  index_t dim, slots, repaired = 0;
  std::vector<std::byte> bytes;
};

inline double mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double far = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += far * far;
  }
  return sum / static_cast<double>(a.size());
}

/// Signal to noise of unit Gaussian numbers, in dB.
inline double gaussian_db(const prim::BlockCodes& codec) {
  std::vector<float> x(1 << 20);
  fill_normal(x.data(), x.size(), 12);
  return -10.0 * std::log10(mean_square(x, BlockPage(codec, x, 128).decoded()));
}

inline double bits_per_number(const prim::BlockCodes& codec) {
  return static_cast<double>(codec.page_bytes(64, 128)) * 8.0 / (64.0 * 128.0);
}

/// Numbers of many sizes, some strong, signs mixed.
inline std::vector<float> hard_numbers(std::size_t n, std::uint64_t seed) {
  std::vector<float> x(n);
  fill_normal(x.data(), n, seed);
  for (std::size_t i = 0; i < n; ++i) x[i] *= i % 37 == 5 ? 40.0f : std::ldexp(1.0f, static_cast<int>(i / 64 % 24) - 12);
  return x;
}

/// Step of a mini float next to `y`, in double.
inline double step_at(prim::MiniFloat f, double y) {
  const int lowest = 1 - f.bias, e = y == 0.0 ? lowest : std::max(lowest, std::ilogb(std::abs(y)));
  return std::ldexp(1.0, e - f.mantissa_bits);
}

}  // namespace kvcondense::test
