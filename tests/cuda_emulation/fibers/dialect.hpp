#pragma once

// What the dialect's PTX instructions do, as host C++: the twin of backend/cuda/dialect.cuh, wrapper for wrapper.

#include <cmath>
#include <cstring>
#include <limits>

#include <kvcondense/core/dtype.hpp>

#include "names.hpp"

namespace kvcondense::cuda {

inline constexpr std::uint32_t full_warp = 0xffffffffu;

namespace detail {

using Fibers = cuda_fibers::Here;

inline float low_half(std::uint32_t v) { return kvcondense::detail::half_value(static_cast<std::uint16_t>(v)); }
inline float high_half(std::uint32_t v) { return low_half(v >> 16); }
inline std::uint32_t two_halves(float low, float high) {
  return kvcondense::detail::half_bits(low) | static_cast<std::uint32_t>(kvcondense::detail::half_bits(high)) << 16;
}
/// To a float whose last bit is set where anything was cut: what is rounded once more, to a half, is as if it had been rounded once.
inline float odd_float(double x) {
  const float f = static_cast<float>(x);
  if (!(std::fabs(x) < std::numeric_limits<float>::infinity()) || static_cast<double>(f) == x) return f;
  const auto bits = kvcondense::detail::bit_cast<std::uint32_t>(f);
  return kvcondense::detail::bit_cast<float>((bits - static_cast<std::uint32_t>(std::fabs(static_cast<double>(f)) > std::fabs(x))) | 1u);
}
/// Products and sums of halves lose nothing in a double that rounding to a half could see: one rounding, as the hardware does.
inline std::uint32_t each_half(std::uint32_t a, std::uint32_t b, std::uint32_t c, double (*f)(double, double, double)) {
  const auto one = [&](float x, float y, float z) { return odd_float(f(x, y, z)); };
  return two_halves(one(low_half(a), low_half(b), low_half(c)), one(high_half(a), high_half(b), high_half(c)));
}

struct Fragments {
  std::uint32_t a[4], b[2];
};

}  // namespace detail

inline unsigned char* dyn_smem() { return cuda_fibers::machine.shared; }
inline void forget_shared() { cuda_fibers::forget_shared(); }

inline std::uint32_t prmt(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t both = static_cast<std::uint64_t>(b) << 32 | a;
  std::uint32_t r = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const std::uint32_t s = selector >> (4 * i) & 15u;
    std::uint32_t byte = static_cast<std::uint32_t>(both >> (8 * (s & 7u))) & 255u;
    if ((s & 8u) != 0) byte = (byte & 128u) != 0 ? 255u : 0u;  // bit 3: the byte's sign, eight times
    r |= byte << (8 * i);
  }
  return r;
}
inline std::uint32_t and_or(std::uint32_t a, std::uint32_t mask, std::uint32_t bits) { return (a & mask) | bits; }

inline std::uint32_t half2_pack(float low, float high) { return detail::two_halves(low, high); }
inline std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return detail::each_half(a, b, c, [](double x, double y, double z) { return x * y + z; });
}
inline std::uint32_t half2_mul(std::uint32_t a, std::uint32_t b) {
  return detail::each_half(a, b, 0, [](double x, double y, double) { return x * y; });
}
inline float exp2_fast(float x) {
  const float power = std::exp2(x);
  return power < std::numeric_limits<float>::min() ? 0.0f : power;  // subnormal: flushed
}

/// The bytes of `from`, or zeros, into shared memory.
template <int Bytes = 16>
void copy_async(void* to, const void* from, bool take = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  if (reinterpret_cast<std::uintptr_t>(to) % Bytes != 0 || reinterpret_cast<std::uintptr_t>(from) % Bytes != 0)
    cuda_fibers::fail("cp.async of bytes that are not aligned to their number");
  static constexpr unsigned char zeros[16] = {};
  const void* source = take ? from : zeros;
  const bool late = cuda_fibers::options.late_copies;
  if (!late) std::memcpy(to, source, Bytes);
  cuda_fibers::copy_later(to, late ? source : nullptr, Bytes);
}
inline void copy_async_commit() { cuda_fibers::commit_copies(); }
/// All but the newest N groups of this thread have landed.
template <int N>
void copy_async_wait() {
  cuda_fibers::Copy c{};
  while (cuda_fibers::next_landing(N, c))
    if (c.from != nullptr) std::memcpy(c.to, c.from, c.bytes);  // where sanitizers see the write
}

/// The m16n8k16 product.
inline void mma_f16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                    detail::Fibers at = detail::Fibers::current()) {
  const detail::Fragments mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto* s = cuda_fibers::meet(full_warp, cuda_fibers::WarpOp::mma, &mine, sizeof mine, at.line());
  const unsigned row = cuda_fibers::lane() / 4, column = cuda_fibers::lane() % 4 * 2;
  const auto pair = [](std::uint32_t x, std::uint32_t y) {
    return detail::low_half(x) * detail::low_half(y) + detail::high_half(x) * detail::high_half(y);
  };
  for (unsigned k = 0; k < 4; ++k) {  // four lanes hold this row of A, four this column of B
    const auto left = cuda_fibers::brought<detail::Fragments>(s[row * 4 + k]);
    for (unsigned c = 0; c < 2; ++c) {
      const auto right = cuda_fibers::brought<detail::Fragments>(s[(column + c) * 4 + k]);
      for (unsigned half = 0; half < 2; ++half) {
        d[c] += pair(left.a[2 * half], right.b[half]);
        d[2 + c] += pair(left.a[2 * half + 1], right.b[half]);
      }
    }
  }
}

/// The transpose of an 8x8 matrix of 16-bit elements: lane r * 4 + c / 2 holds elements c and c + 1 of row r.
inline std::uint32_t transpose_8x8(std::uint32_t v, detail::Fibers at = detail::Fibers::current()) {
  const auto* s = cuda_fibers::meet(full_warp, cuda_fibers::WarpOp::movmatrix, &v, sizeof v, at.line());
  const unsigned row = cuda_fibers::lane() / 4, column = cuda_fibers::lane() % 4 * 2;
  const auto element = [&](unsigned r, unsigned c) {
    const auto word = cuda_fibers::brought<std::uint32_t>(s[r * 4 + c / 2]);
    return c % 2 == 0 ? word & 0xffffu : word >> 16;
  };
  return element(column, row) | element(column + 1, row) << 16;
}

}  // namespace kvcondense::cuda
