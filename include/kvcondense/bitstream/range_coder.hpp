#pragma once

#include <algorithm>
#include <bit>
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
      if (const int n = at.agreed(); n > 0) {
        w.settle(at.low, n);
        at.drop(n);
      }
      const int n = at.close();
      at.drop_middle(n);
      w.put_off += static_cast<std::uint64_t>(n);
    }
    ++w.put_off;
    w.settle(at.low >= 0x40000000u ? 0x80000000u : 0u, 1);
    bytes = w.finish();
    return w.full ? Status::shape_mismatch : Status::ok;
  }

  /// use(i, symbol) for i = 0 .. n - 1, also where the result is corrupt_data in the end.
  template <class Use>
  static Status decode(std::span<const std::byte> stream, const SymbolTable& table, std::size_t n, Use&& use) {
    if (table.bits != table_bits) return Status::invalid_argument;
    Interval at;
    Reader r{stream};
    std::uint32_t value = r.take(32);
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint64_t inside = std::uint64_t{value} - at.low + 1;
      const int s = table.find(static_cast<std::uint32_t>(((inside << table_bits) - 1) / at.width()));
      use(i, s);
      at.enter(table.begin(s), table.end(s));
      if (const int k = at.agreed(); k > 0) {
        at.drop(k);
        value = value << k | r.take(k);
      }
      if (const int k = at.close(); k > 0) {
        at.drop_middle(k);
        value = (value & top) | (value << k & ~top) | r.take(k);
      }
    }
    // What was read behind the first 32 bits stands for a bit each; then come a last one and its complement.
    return (r.read - 32 + 2 + 7) / 8 == stream.size() ? Status::ok : Status::corrupt_data;
  }

 private:
  static constexpr std::uint32_t top = 0x80000000u;

  /// [low, high], both inside. More than a quarter of all numbers wide when a symbol comes, so that one of width 1 of
  /// 65536 still owns 2^14 numbers, and no more than 18 bits leave at once.
  struct Interval {
    std::uint32_t low = 0, high = 0xffffffffu;

    std::uint64_t width() const { return std::uint64_t{high} - low + 1; }
    void enter(std::uint32_t begin, std::uint32_t end) {
      const std::uint64_t w = width();
      high = static_cast<std::uint32_t>(low + (w * end >> table_bits) - 1);
      low = static_cast<std::uint32_t>(low + (w * begin >> table_bits));
    }
    /// Leading bits that both ends share.
    int agreed() const { return std::countl_zero(low ^ high); }
    void drop(int n) {
      low <<= n;
      high = high << n | ((1u << n) - 1u);
    }
    /// Bits behind the first one where low, 0111..., and high, 1000..., are as close as can be.
    int close() const { return std::min(std::countl_one(low << 1), std::countl_zero(high << 1 | 1u)); }
    void drop_middle(int n) {
      low = low << n & ~top;
      high = high << n | top | ((1u << n) - 1u);
    }
  };

  struct Writer {
    std::span<std::byte> out;
    std::uint64_t put_off = 0;  ///< bits that are the complement of the next one
    std::uint64_t bits = 0;     ///< the newest, `held` of them not written
    int held = 0;
    std::size_t at = 0;
    bool full = false;

    void put(std::uint32_t value, int n) {
      bits = bits << n | value;
      for (held += n; held >= 8;) {
        held -= 8;
        if (at < out.size()) out[at++] = static_cast<std::byte>(bits >> held);
        else full = true;
      }
    }
    /// The first n bits of `from`, those that were put off behind the first of them.
    void settle(std::uint32_t from, int n) {
      const std::uint32_t first = from >> 31;
      put(first, 1);
      for (; put_off > 0 && !full; --put_off) put(first ^ 1u, 1);
      put_off = 0;
      if (n > 1) put(from << 1 >> (33 - n), n - 1);
    }
    std::size_t finish() {
      if (held > 0) put(0, 8 - held);
      return at;
    }
  };

  /// Bits of a stream, zeros behind its end.
  struct Reader {
    std::span<const std::byte> in;
    std::uint64_t read = 0;
    std::uint64_t bits = 0;
    int held = 0;
    std::size_t at = 0;

    /// At most 32.
    std::uint32_t take(int n) {
      read += static_cast<std::uint64_t>(n);
      for (; held < n; held += 8) bits = bits << 8 | (at < in.size() ? static_cast<std::uint64_t>(in[at++]) : 0u);
      held -= n;
      return static_cast<std::uint32_t>(bits >> held & ((std::uint64_t{1} << n) - 1));
    }
  };
};

}  // namespace kvcondense::bitstream
