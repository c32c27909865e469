#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/bitstream/symbol_table.hpp>
#include <kvcondense/core/random.hpp>
#include <support/guarded.hpp>

namespace kvcondense::test {

using Symbols = std::vector<std::uint8_t>;
using Bytes = std::vector<std::byte>;

inline Bytes from_hex(const std::string& hex) {
  Bytes out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    out.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return out;
}

/// A table that owns its numbers.
struct Table {
  std::vector<std::uint16_t> starts;
  int bits;
  Table(const std::vector<std::uint32_t>& counts, int width) : starts(counts.size()), bits(width) {
    REQUIRE(bitstream::make_table(counts, bits, starts) == Status::ok);
  }
  bitstream::SymbolTable view() const { return {starts.data(), static_cast<int>(starts.size()), bits}; }
};

inline std::vector<std::uint32_t> count(const Symbols& symbols, int n) {
  std::vector<std::uint32_t> counts(static_cast<std::size_t>(n));
  for (const auto s : symbols) ++counts[s];
  return counts;
}

/// Bits that the symbols cost under the table, without any coder.
inline double cost_bits(const Symbols& symbols, const bitstream::SymbolTable& t) {
  double bits = 0;
  for (const auto s : symbols) bits += t.bits - std::log2(static_cast<double>(t.end(s) - t.begin(s)));
  return bits;
}

/// Encodes into an array that ends where `most_bytes` says.
template <class Coder>
Bytes encoded(const Symbols& symbols, const bitstream::SymbolTable& t) {
  Guarded<std::byte> out(Coder::most_bytes(symbols.size()));
  std::size_t bytes = 0;
  REQUIRE(Coder::encode(symbols, t, {out.data(), out.size()}, bytes) == Status::ok);
  REQUIRE(bytes <= out.size());
  REQUIRE(out.ok());
  return {out.begin(), out.begin() + bytes};
}

template <class Coder>
Status decode(const Bytes& stream, const bitstream::SymbolTable& t, std::size_t n, Symbols& symbols) {
  Guarded<std::byte> in(stream.size());  // its own size, so that a sanitizer sees reads behind it
  std::copy(stream.begin(), stream.end(), in.begin());
  symbols.assign(n, 255);
  bool inside = true;
  const Status s = Coder::decode({in.data(), in.size()}, t, n, [&](std::size_t i, int symbol) {
    inside = inside && i < n && symbol >= 0 && symbol < t.symbols;
    if (inside) symbols[i] = static_cast<std::uint8_t>(symbol);
  });
  REQUIRE(inside);
  return s;
}

template <class Coder>
void require_round_trip(const Symbols& symbols, const bitstream::SymbolTable& t) {
  const Bytes stream = encoded<Coder>(symbols, t);
  INFO("symbols " << symbols.size() << " of " << t.symbols << ", bytes " << stream.size());
  REQUIRE(static_cast<double>(stream.size()) <= cost_bits(symbols, t) / 8 + 5);
  Symbols back;
  REQUIRE(decode<Coder>(stream, t, symbols.size(), back) == Status::ok);
  REQUIRE(back == symbols);
}

/// Symbols with the probabilities of a bell whose width is `spread` symbols.
inline Symbols bell(std::size_t n, int symbols, double spread, std::uint64_t seed) {
  Symbols out(n);
  for (std::size_t i = 0; i < n; ++i) {
    double sum = -6;
    for (std::size_t k = 0; k < 12; ++k) sum += static_cast<double>(random_uniform(seed, i * 12 + k));
    const double at = std::round((symbols - 1) / 2.0 + sum * spread);
    out[i] = static_cast<std::uint8_t>(std::min(std::max(at, 0.0), symbols - 1.0));
  }
  return out;
}

}  // namespace kvcondense::test
