#pragma once

#include <cstdint>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::bitstream {

inline constexpr int max_symbols = 256;

/// How often symbols come, as an entropy coder wants it: symbol s owns [begin(s), end(s)) of 2^bits. A view of
/// the caller's numbers; every symbol is at least 1 wide, so that whatever comes can be coded.
struct SymbolTable {
  const std::uint16_t* starts = nullptr;  ///< `symbols` numbers, ascending from 0
  int symbols = 0;
  int bits = 16;

  std::uint32_t begin(int s) const { return starts[s]; }
  std::uint32_t end(int s) const { return s + 1 < symbols ? starts[s + 1] : std::uint32_t{1} << bits; }

  /// The symbol that owns `at`, which is below 2^bits.
  int find(std::uint32_t at) const {
    int s = 0;
    for (int left = symbols; left > 1;) {
      const int half = left / 2;
      s += starts[s + half] <= at ? half : 0;
      left -= half;
    }
    return s;
  }
};

/// Writes starts [N] from counts [N]: start(i) = floor((all - N) * counts before i / sum of counts) + i, with `all`
/// 65535 for 16 bits as the released code of CacheGen has it, else 2^bits. No counts at all: equal widths.
///
/// Errors   shape_mismatch when the lengths differ, invalid_argument for no symbols, more than 256, or bits
///          outside [9, 16].
inline Status make_table(std::span<const std::uint32_t> counts, int bits, std::span<std::uint16_t> starts) {
  if (counts.size() != starts.size()) return Status::shape_mismatch;
  if (counts.empty() || counts.size() > max_symbols || bits < 9 || bits > 16) return Status::invalid_argument;
  const auto n = static_cast<std::uint64_t>(counts.size());
  const std::uint64_t room = (bits == 16 ? 65535u : std::uint64_t{1} << bits) - n;
  std::uint64_t total = 0, before = 0;
  for (const std::uint32_t c : counts) total += c;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    starts[i] = static_cast<std::uint16_t>((total == 0 ? room * i / n : room * before / total) + i);
    before += counts[i];
  }
  return Status::ok;
}

/// corrupt_data unless the numbers are a table.
inline Status check_table(const SymbolTable& t) {
  if (t.symbols < 1 || t.symbols > max_symbols || t.starts[0] != 0) return Status::corrupt_data;
  for (int s = 0; s < t.symbols; ++s)
    if (t.begin(s) >= t.end(s)) return Status::corrupt_data;
  return Status::ok;
}

}  // namespace kvcondense::bitstream
