#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <kvcondense/bitstream/symbol_table.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::bitstream {

/// Symbols as one long fraction: the 32-bit integer arithmetic coder of CacheGen's released code, bit for bit.
///
/// Idea     An interval shrinks to the part that the next symbol owns; leading bits on which both ends agree are
///          written, the most significant bit of a byte first. Ends that straddle the middle closely put bits off.
/// Shapes   a table of 16 bits; n symbols below table.symbols; streams of whole bytes.
/// Cost     cross entropy under the table, and 2 bits up to 10; a division per symbol when decoding.
/// Errors   encode: invalid_argument (a symbol or table that is none), shape_mismatch (`out` is too small;
///          `most_bytes` always suffices). decode: corrupt_data where the stream's length is not what the symbols
///          need; it ends after n symbols whatever the bytes, and every symbol is below table.symbols.
struct RangeCoder {
  static constexpr int table_bits = 16;

  static constexpr std::size_t most_bytes(std::size_t n) { return 2 * n + n / 4096 + 8; }

  static Status encode(std::span<const std::uint8_t> symbols, const SymbolTable& table, std::span<std::byte> out,
                       std::size_t& bytes) {
    if (table.bits != table_bits) return Status::invalid_argument;
    Interval at;
    Writer w{out};
    for (const int s : symbols) {
      if (s >= table.symbols) return Status::invalid_argument;
      at.enter(table.begin(s), table.end(s));
      for (Shift shift = at.next(); shift != Shift::none; shift = at.next()) {
        if (shift == Shift::middle) ++w.put_off;
        else w.settle(shift == Shift::high);
        at.apply(shift);
      }
    }
    ++w.put_off;
    w.settle(at.low >= quarter);
    bytes = (w.bits + 7) / 8;
    return w.full ? Status::shape_mismatch : Status::ok;
  }

  /// use(i, symbol) for i = 0 .. n - 1, also where the result is corrupt_data in the end.
  template <class Use>
  static Status decode(std::span<const std::byte> stream, const SymbolTable& table, std::size_t n, Use&& use) {
    if (table.bits != table_bits) return Status::invalid_argument;
    Interval at;
    std::uint64_t read = 0;
    std::uint32_t value = 0;
    const auto bit = [&] {
      const std::uint64_t byte = read / 8;
      const auto b = byte < stream.size() ? static_cast<std::uint32_t>(stream[byte]) >> (7 - read % 8) : 0u;
      ++read;
      return b & 1u;
    };
    for (int i = 0; i < 32; ++i) value = value << 1 | bit();
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint64_t inside = std::uint64_t{value} - at.low + 1;
      const int s = table.find(static_cast<std::uint32_t>(((inside << table_bits) - 1) / at.width()));
      use(i, s);
      at.enter(table.begin(s), table.end(s));
      for (Shift shift = at.next(); shift != Shift::none; shift = at.next()) {
        at.apply(shift);
        value = (shift == Shift::middle ? value - quarter : value) << 1 | bit();
      }
    }
    // Every shift stands for a bit, then come a last one and its complement.
    return (read - 32 + 2 + 7) / 8 == stream.size() ? Status::ok : Status::corrupt_data;
  }

 private:
  static constexpr std::uint32_t quarter = 0x40000000u, half = 0x80000000u;
  enum class Shift { none, low, high, middle };

  /// [low, high], both inside. At least a quarter of all numbers wide after the shifts, so that a symbol of
  /// width 1 of 65536 still owns something.
  struct Interval {
    std::uint32_t low = 0, high = 0xffffffffu;

    std::uint64_t width() const { return std::uint64_t{high} - low + 1; }
    void enter(std::uint32_t begin, std::uint32_t end) {
      const std::uint64_t w = width();
      high = static_cast<std::uint32_t>(low + (w * end >> table_bits) - 1);
      low = static_cast<std::uint32_t>(low + (w * begin >> table_bits));
    }
    Shift next() const {
      if (high < half) return Shift::low;
      if (low >= half) return Shift::high;
      return low >= quarter && high < half + quarter ? Shift::middle : Shift::none;
    }
    void apply(Shift shift) {
      const std::uint32_t off = shift == Shift::middle ? quarter : 0;  // else the bit leaves at the top
      low = (low - off) << 1;
      high = (high - off) << 1 | 1u;
    }
  };

  struct Writer {
    std::span<std::byte> out;
    std::uint64_t bits = 0, put_off = 0;
    bool full = false;

    void put(bool bit) {
      const std::uint64_t byte = bits / 8;
      if (byte >= out.size()) {
        full = true;
        return;
      }
      if (bits % 8 == 0) out[byte] = std::byte{0};
      if (bit) out[byte] |= std::byte{0x80} >> (bits % 8);
      ++bits;
    }
    void settle(bool bit) {
      put(bit);
      for (; put_off > 0 && !full; --put_off) put(!bit);
    }
  };
};

}  // namespace kvcondense::bitstream
