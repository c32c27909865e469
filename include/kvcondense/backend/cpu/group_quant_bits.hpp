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

/// Calls f with a width, 1 to Most, as a constant: what is none of the others counts as Most.
template <int Most, int Bits = 1, class F>
void with_bits(int bits, F&& f) {
  if constexpr (Bits < Most) {
    if (bits != Bits) return with_bits<Most, Bits + 1>(bits, f);
  }
  f.template operator()<Bits>();
}

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

/// Eight codes from the low `Bits` bytes of `window`; higher bytes may hold anything.
template <int Bits>
inline void unpack_window(std::uint64_t window, std::uint8_t* out) {
  if constexpr (Bits == 1) {
    // One byte into eight: each keeps its own bit, then any bit becomes a one.
    const std::uint64_t own = ((window & 0xff) * 0x0101010101010101ull) & 0x8040201008040201ull;
    const std::uint64_t ones = ((own + 0x7f7f7f7f7f7f7f7full) >> 7) & 0x0101010101010101ull;
    std::memcpy(out, &ones, sizeof ones);
  } else {
    // Halve three times: 8 codes in one field, 4 in two of 32 bits, 2 in four of 16, 1 in eight bytes.
    constexpr std::uint64_t one = (1ull << Bits) - 1, two = (1ull << 2 * Bits) - 1, four = (1ull << 4 * Bits) - 1;
    std::uint64_t w = window;
    w = (w & four) | ((w & (four << 4 * Bits)) << (32 - 4 * Bits));
    constexpr std::uint64_t pairs = two | (two << 32), singles = one * 0x0001000100010001ull;
    w = (w & pairs) | ((w & (pairs << 2 * Bits)) << (16 - 2 * Bits));
    w = (w & singles) | ((w & (singles << Bits)) << (8 - Bits));
    std::memcpy(out, &w, sizeof w);
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
      std::memcpy(&v, in + at, static_cast<std::size_t>((bytes - at) % step));
      unpack_bytes<Bits>(v, out + at * 8 / Bits);
    }
  } else {
    index_t at = 0;
    std::uint64_t window;
    for (; at + 8 <= bytes; at += Bits, out += 8) {  // a whole word is quicker to load than its first bytes
      std::memcpy(&window, in + at, sizeof window);
      unpack_window<Bits>(window, out);
    }
    for (; at < bytes; at += Bits, out += 8) {
      window = 0;
      std::memcpy(&window, in + at, static_cast<std::size_t>(std::min<index_t>(Bits, bytes - at)));
      unpack_window<Bits>(window, out);
    }
  }
}

/// Eight codes, one per byte of `w`, in the low `Bits` bytes.
template <int Bits>
inline std::uint64_t pack_window(std::uint64_t w) {
  if constexpr (Bits == 8) return w;
  constexpr std::uint64_t one = 0x0001000100010001ull * ((1ull << Bits) - 1);
  constexpr std::uint64_t two = 0x0000000100000001ull * ((1ull << 2 * Bits) - 1);
  constexpr std::uint64_t four = (1ull << 4 * Bits) - 1;
  w = (w & one) | ((w >> (8 - Bits)) & (one << Bits));
  w = (w & two) | ((w >> (16 - 2 * Bits)) & (two << 2 * Bits));
  return (w & four) | ((w >> (32 - 4 * Bits)) & (four << 4 * Bits));
}

/// `n` codes, each below 2^Bits, into ceil(n * Bits / 8) bytes; unused bits are zero.
template <int Bits>
inline void pack_codes(const std::uint8_t* in, index_t n, std::byte* out) {
  std::uint64_t window;
  index_t i = 0;
  for (; i + 8 <= n; i += 8, out += Bits) {
    std::memcpy(&window, in + i, sizeof window);
    window = pack_window<Bits>(window);
    std::memcpy(out, &window, Bits);
  }
  if (i == n) return;
  window = 0;
  std::memcpy(&window, in + i, static_cast<std::size_t>(n - i));
  window = pack_window<Bits>(window);
  std::memcpy(out, &window, static_cast<std::size_t>(((n - i) * Bits + 7) / 8));
}

}  // namespace kvcondense::prim::cpu
