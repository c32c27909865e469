#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>

// Where codes of few bits lie in bytes: the layouts of the field, one struct each. `get` and `set` are
// pure functions for host and device; they are the truth that faster code is tested against.

namespace kvcondense::prim {

/// A layout of codes in bytes. `codes(n)` codes fit exactly when n is a multiple of `run_length()`.
template <class P>
concept Packing = requires(const P p, const std::byte* in, std::byte* out, index_t i, std::uint32_t code) {
  { P::levels } -> std::convertible_to<std::uint32_t>;  // codes are below this
  { p.run_length() } -> std::same_as<index_t>;          // codes that are laid out together
  { p.bytes(i) } -> std::same_as<index_t>;              // bytes of i codes
  { p.get(in, i) } -> std::same_as<std::uint32_t>;
  p.set(out, i, code);                                  // changes this code only
};

/// `width` bits at bit `at` of byte `index`, all within that byte.
KVCONDENSE_HD constexpr std::uint32_t bits_in_byte(const std::byte* in, index_t index, int at, int width) {
  return (static_cast<std::uint32_t>(in[index]) >> at) & ((1u << width) - 1u);
}
KVCONDENSE_HD constexpr void set_bits_in_byte(std::byte* out, index_t index, int at, int width, std::uint32_t v) {
  const std::uint32_t mask = ((1u << width) - 1u) << at;
  out[index] = static_cast<std::byte>((static_cast<std::uint32_t>(out[index]) & ~mask) | ((v << at) & mask));
}

/// A plain little-endian bit stream: code i at bits [Bits * i, Bits * (i + 1)).
template <int Bits>
struct DenseLe {
  static_assert(Bits >= 1 && Bits <= 8, "kvcondense: DenseLe packs codes of 1 to 8 bits.");
  static constexpr std::uint32_t levels = 1u << Bits;

  KVCONDENSE_HD constexpr index_t run_length() const { return 1; }
  KVCONDENSE_HD constexpr index_t bytes(index_t n) const { return (n * Bits + 7) / 8; }
  KVCONDENSE_HD constexpr std::uint32_t get(const std::byte* in, index_t i) const {
    const index_t at = i * Bits;
    const int shift = static_cast<int>(at % 8), here = shift + Bits > 8 ? 8 - shift : Bits;
    const std::uint32_t low = bits_in_byte(in, at / 8, shift, here);
    return here == Bits ? low : low | (bits_in_byte(in, at / 8 + 1, 0, Bits - here) << here);
  }
  KVCONDENSE_HD constexpr void set(std::byte* out, index_t i, std::uint32_t code) const {
    const index_t at = i * Bits;
    const int shift = static_cast<int>(at % 8), here = shift + Bits > 8 ? 8 - shift : Bits;
    set_bits_in_byte(out, at / 8, shift, here, code);
    if (here < Bits) set_bits_in_byte(out, at / 8 + 1, 0, Bits - here, code >> here);
  }
};

/// Words of WordBits, little endian, each with floor(WordBits / Bits) codes from its low end (LSB32, LSB16).
template <int WordBits, int Bits>
struct LsbWords {
  static_assert((WordBits == 16 || WordBits == 32) && Bits >= 1 && Bits <= 8);
  static constexpr std::uint32_t levels = 1u << Bits;
  static constexpr index_t each = WordBits / Bits;

  KVCONDENSE_HD constexpr index_t run_length() const { return each; }
  KVCONDENSE_HD constexpr index_t bytes(index_t n) const { return (n + each - 1) / each * (WordBits / 8); }
  KVCONDENSE_HD constexpr std::uint32_t get(const std::byte* in, index_t i) const {
    return DenseLe<Bits>{}.get(in + i / each * (WordBits / 8), i % each);
  }
  KVCONDENSE_HD constexpr void set(std::byte* out, index_t i, std::uint32_t code) const {
    DenseLe<Bits>{}.set(out + i / each * (WordBits / 8), i % each, code);
  }
};

template <int Bits>
using Lsb32 = LsbWords<32, Bits>;
template <int Bits>
using Lsb16 = LsbWords<16, Bits>;

/// Parts = 8 / Bits codes per byte, from runs of `run` codes cut in Parts equal pieces: byte k of a run
/// has code k of every piece, the first piece in the low bits, or in the high ones (HighFirst).
/// SPLIT_HALF, SPLIT_HALF_HI, SPLIT_QUARTER; with run = Parts also NIB_EVEN_LOW, NIB_EVEN_HIGH, MSB8.
template <int Bits, bool HighFirst>
struct SplitRun {
  static_assert(Bits == 2 || Bits == 4);
  static constexpr std::uint32_t levels = 1u << Bits;
  static constexpr int parts = 8 / Bits;
  index_t run = parts;  ///< a multiple of `parts`

  KVCONDENSE_HD constexpr index_t run_length() const { return run; }
  KVCONDENSE_HD constexpr index_t bytes(index_t n) const { return (n + run - 1) / run * (run / parts); }
  KVCONDENSE_HD constexpr std::uint32_t get(const std::byte* in, index_t i) const {
    return bits_in_byte(in, byte_of(i), shift_of(i), Bits);
  }
  KVCONDENSE_HD constexpr void set(std::byte* out, index_t i, std::uint32_t code) const {
    set_bits_in_byte(out, byte_of(i), shift_of(i), Bits, code);
  }

 private:
  KVCONDENSE_HD constexpr index_t byte_of(index_t i) const { return i / run * (run / parts) + i % run % (run / parts); }
  KVCONDENSE_HD constexpr int shift_of(index_t i) const {
    const int part = static_cast<int>(i % run / (run / parts));
    return Bits * (HighFirst ? parts - 1 - part : part);
  }
};

using SplitHalf = SplitRun<4, false>;      ///< ggml run 32, GEAR and ZipCache run heads * dim, LMDeploy run dim
using SplitHalfHigh = SplitRun<4, true>;   ///< HQQ
using SplitQuarter = SplitRun<2, false>;   ///< ZipCache and LMDeploy, 2 bits

/// byte k = c[2k] | c[2k + 1] << 4: a run of two.
struct NibEvenLow : SplitHalf {};
/// byte k = c[2k] << 4 | c[2k + 1].
struct NibEvenHigh : SplitHalfHigh {};
/// byte k = the four 2-bit codes from 4k, the first in the high bits.
struct Msb8 : SplitRun<2, true> {};

/// Five codes below 3 in a byte: sum of c[5k + j] * 3^j, at most 242.
struct Trit5 {
  static constexpr std::uint32_t levels = 3;

  KVCONDENSE_HD constexpr index_t run_length() const { return 5; }
  KVCONDENSE_HD constexpr index_t bytes(index_t n) const { return (n + 4) / 5; }
  KVCONDENSE_HD constexpr std::uint32_t get(const std::byte* in, index_t i) const {
    return static_cast<std::uint32_t>(in[i / 5]) / power(i % 5) % 3u;
  }
  KVCONDENSE_HD constexpr void set(std::byte* out, index_t i, std::uint32_t code) const {
    const std::uint32_t rest = static_cast<std::uint32_t>(out[i / 5]) - get(out, i) * power(i % 5);
    out[i / 5] = static_cast<std::byte>(rest + code * power(i % 5));
  }

 private:
  KVCONDENSE_HD static constexpr std::uint32_t power(index_t j) {
    return j == 0 ? 1u : j == 1 ? 3u : j == 2 ? 9u : j == 3 ? 27u : 81u;
  }
};

/// 5-bit codes in runs of 32: a 32-bit word with bit 4 of code j at bit j, then the low nibbles as
/// SPLIT_HALF(32); the order of ggml's q5 blocks.
struct Qh5 {
  static constexpr std::uint32_t levels = 32;

  KVCONDENSE_HD constexpr index_t run_length() const { return 32; }
  KVCONDENSE_HD constexpr index_t bytes(index_t n) const { return (n + 31) / 32 * 20; }
  KVCONDENSE_HD constexpr std::uint32_t get(const std::byte* in, index_t i) const {
    const std::byte* block = in + i / 32 * 20;
    return SplitHalf{32}.get(block + 4, i % 32) | (DenseLe<1>{}.get(block, i % 32) << 4);
  }
  KVCONDENSE_HD constexpr void set(std::byte* out, index_t i, std::uint32_t code) const {
    std::byte* block = out + i / 32 * 20;
    SplitHalf{32}.set(block + 4, i % 32, code & 15u);
    DenseLe<1>{}.set(block, i % 32, code >> 4);
  }
};

/// Runs of 32 codes as Bits words of 32 bits: word p has bit p of every code.
template <int Bits>
struct BitPlanes {
  static_assert(Bits >= 1 && Bits <= 8);
  static constexpr std::uint32_t levels = 1u << Bits;

  KVCONDENSE_HD constexpr index_t run_length() const { return 32; }
  KVCONDENSE_HD constexpr index_t bytes(index_t n) const { return (n + 31) / 32 * 4 * Bits; }
  KVCONDENSE_HD constexpr std::uint32_t get(const std::byte* in, index_t i) const {
    std::uint32_t code = 0;
    for (int p = 0; p < Bits; ++p) code |= DenseLe<1>{}.get(plane(in, i, p), i % 32) << p;
    return code;
  }
  KVCONDENSE_HD constexpr void set(std::byte* out, index_t i, std::uint32_t code) const {
    for (int p = 0; p < Bits; ++p) DenseLe<1>{}.set(plane(out, i, p), i % 32, (code >> p) & 1u);
  }

 private:
  template <class T>
  KVCONDENSE_HD static constexpr T* plane(T* bytes, index_t i, int p) {
    return bytes + i / 32 * 4 * Bits + 4 * p;
  }
};

/// Whether a packing takes `codes` codes in exactly `bytes` bytes: what PackBits asks on every backend before it writes.
template <Packing P>
Status packing_fits(const P& packing, std::size_t codes, std::size_t bytes) {
  if constexpr (requires { packing.run; })
    if (packing.run < P::parts || packing.run % P::parts != 0) return Status::invalid_argument;
  return packing.bytes(static_cast<index_t>(codes)) == static_cast<index_t>(bytes) ? Status::ok : Status::shape_mismatch;
}

/// Codes, one per byte, into a packing and back.
///
/// Shapes   codes [n], each below `levels`; bytes: exactly packing.bytes(n). Bits that no code uses are zero.
/// Errors   shape_mismatch when the byte count is another one; invalid_argument for a run that does not
///          divide into its parts or a code that is too large (packing only); nothing is written then.
template <Backend B>
struct PackBits {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
