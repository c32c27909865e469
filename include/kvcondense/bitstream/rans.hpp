#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <kvcondense/bitstream/symbol_table.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::bitstream {

/// Symbols as one number: rANS with a 32-bit state in [2^16, 2^32), 12-bit frequencies, 16-bit words.
///
/// Idea     Coding multiplies the state by about 1 / probability and decoding divides, last in, first out: symbols
///          are coded from the last to the first. No division when decoding.
/// Shapes   a table of 12 bits. A stream is the final state, then the words in the order in which a decoder takes
///          them, all little-endian: 4 bytes and 2 per word.
/// Cost     cross entropy under the table, and 2 bytes up to 4.
/// Errors   encode: invalid_argument (a symbol or table that is none), shape_mismatch (`out` is too small;
///          `most_bytes` always suffices). decode: corrupt_data where words are missing or left, or the state does
///          not end where coding began; every symbol is below table.symbols whatever the bytes.
struct Rans {
  static constexpr int table_bits = 12;

  static constexpr std::size_t most_bytes(std::size_t n) { return 2 * n + 4; }

  static Status encode(std::span<const std::uint8_t> symbols, const SymbolTable& table, std::span<std::byte> out,
                       std::size_t& bytes) {
    if (table.bits != table_bits) return Status::invalid_argument;
    if (out.size() < 4) return Status::shape_mismatch;
    std::uint32_t state = lowest;
    std::size_t at = out.size();  // words grow down from the end: the last one comes first
    for (std::size_t i = symbols.size(); i-- > 0;) {
      const int s = symbols[i];
      if (s >= table.symbols) return Status::invalid_argument;
      const std::uint32_t begin = table.begin(s), width = table.end(s) - begin;
      if (state >= std::uint64_t{width} << 20) {
        if (at < 6) return Status::shape_mismatch;
        out[--at] = static_cast<std::byte>(state >> 8);
        out[--at] = static_cast<std::byte>(state);
        state >>= 16;
      }
      state = (state / width << table_bits) + state % width + begin;
    }
    for (std::size_t i = 0; i < 4; ++i) out[i] = static_cast<std::byte>(state >> 8 * i);
    if (at > 4 && at < out.size()) std::memmove(out.data() + 4, out.data() + at, out.size() - at);
    bytes = 4 + out.size() - at;
    return Status::ok;
  }

  /// use(i, symbol) for i = 0, 1, ...: n times, fewer where words are missing.
  template <class Use>
  static Status decode(std::span<const std::byte> stream, const SymbolTable& table, std::size_t n, Use&& use) {
    if (table.bits != table_bits) return Status::invalid_argument;
    if (stream.size() < 4) return Status::corrupt_data;
    const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(stream[i]); };
    std::uint32_t state = byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
    if (state < lowest) return Status::corrupt_data;
    std::size_t at = 4;
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t slot = state & ((1u << table_bits) - 1u);
      const int s = table.find(slot);
      use(i, s);
      const std::uint32_t begin = table.begin(s), width = table.end(s) - begin;
      state = width * (state >> table_bits) + slot - begin;
      if (state >= lowest) continue;
      if (stream.size() - at < 2) return Status::corrupt_data;
      state = state << 16 | byte(at + 1) << 8 | byte(at);
      at += 2;
    }
    return state == lowest && at == stream.size() ? Status::ok : Status::corrupt_data;
  }

 private:
  static constexpr std::uint32_t lowest = 1u << 16;
};

}  // namespace kvcondense::bitstream
