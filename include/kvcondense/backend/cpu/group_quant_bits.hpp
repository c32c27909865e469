#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <kvcondense/core/config.hpp>

// Little-endian bit streams of codes to bytes and back, many codes at a time.

namespace kvcondense::prim::cpu {

static_assert(std::endian::native == std::endian::little, "kvcondense: the CPU backend reads codes on little-endian hosts.");

using Bytes16 __attribute__((vector_size(16))) = std::uint8_t;
using Pairs8 __attribute__((vector_size(16))) = std::uint16_t;

/// Codes are written in whole steps of this many; buffers of codes have room for a full last step.
inline constexpr index_t code_step = 128;

/// a0 b0 a1 b1 ...: 16 + 16 bytes become two vectors at `out`.
inline void interleave_bytes(const Bytes16& a, const Bytes16& b, Bytes16& low, Bytes16& high) {
  low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

inline void store_pairs(const Bytes16& a, const Bytes16& b, std::uint8_t* out) {
  Pairs8 x, y;
  std::memcpy(&x, &a, sizeof x);
  std::memcpy(&y, &b, sizeof y);
  const Pairs8 low = __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
  const Pairs8 high = __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
  std::memcpy(out, &low, sizeof low);
  std::memcpy(out + 16, &high, sizeof high);
}

/// 16 bytes of 2- or 4-bit codes.
template <int Bits>
inline void unpack_bytes(const Bytes16& v, std::uint8_t* out) {
  if constexpr (Bits == 4) {
    Bytes16 low, high;
    interleave_bytes(v & 15, v >> 4, low, high);
    std::memcpy(out, &low, sizeof low);
    std::memcpy(out + 16, &high, sizeof high);
  } else {
    Bytes16 even_low, even_high, odd_low, odd_high;
    interleave_bytes(v & 3, (v >> 2) & 3, even_low, even_high);
    interleave_bytes((v >> 4) & 3, v >> 6, odd_low, odd_high);
    store_pairs(even_low, odd_low, out);
    store_pairs(even_high, odd_high, out + 32);
  }
}

/// Eight codes from `Bits` bytes that stand in the low end of `window`.
template <int Bits>
inline void unpack_window(std::uint64_t window, std::uint8_t* out) {
  if constexpr (Bits == 1) {
    // One byte into eight: each keeps its own bit, then any bit becomes a one.
    const std::uint64_t own = (window * 0x0101010101010101ull) & 0x8040201008040201ull;
    const std::uint64_t ones = ((own + 0x7f7f7f7f7f7f7f7full) >> 7) & 0x0101010101010101ull;
    std::memcpy(out, &ones, sizeof ones);
  } else {
    for (int k = 0; k < 8; ++k) out[k] = static_cast<std::uint8_t>((window >> (Bits * k)) & ((1u << Bits) - 1u));
  }
}

/// `n` codes of a bit stream; reads exactly its ceil(n * Bits / 8) bytes, may write up to
/// `code_step` - 1 codes beyond `n`.
template <int Bits>
inline void unpack_codes(const std::byte* in, index_t n, std::uint8_t* KVCONDENSE_RESTRICT out) {
  const index_t bytes = (n * Bits + 7) / 8;
  if constexpr (Bits == 8) {
    std::memcpy(out, in, static_cast<std::size_t>(n));
  } else if constexpr (Bits == 2 || Bits == 4) {
    constexpr index_t step = 16;
    Bytes16 v;
    index_t at = 0;
    for (; at + step <= bytes; at += step) {
      std::memcpy(&v, in + at, sizeof v);
      unpack_bytes<Bits>(v, out + at * 8 / Bits);
    }
    if (at < bytes) {
      v = Bytes16{};
      std::memcpy(&v, in + at, static_cast<std::size_t>(bytes - at));
      unpack_bytes<Bits>(v, out + at * 8 / Bits);
    }
  } else {
    index_t at = 0;
    for (; at + Bits <= bytes; at += Bits) {
      std::uint64_t window = 0;
      std::memcpy(&window, in + at, Bits);
      unpack_window<Bits>(window, out + at / Bits * 8);
    }
    if (at < bytes) {
      std::uint64_t window = 0;
      std::memcpy(&window, in + at, static_cast<std::size_t>(bytes - at));
      unpack_window<Bits>(window, out + at / Bits * 8);
    }
  }
}

/// `n` codes, each below 2^Bits, into ceil(n * Bits / 8) bytes; unused bits are zero.
template <int Bits>
inline void pack_codes(const std::uint8_t* in, index_t n, std::byte* out) {
  for (index_t i = 0; i < n; i += 8) {
    const index_t here = std::min<index_t>(8, n - i);
    std::uint64_t window = 0;
    for (index_t k = 0; k < here; ++k) window |= static_cast<std::uint64_t>(in[i + k]) << (Bits * k);
    std::memcpy(out + i / 8 * Bits, &window, static_cast<std::size_t>((here * Bits + 7) / 8));
  }
}

}  // namespace kvcondense::prim::cpu
