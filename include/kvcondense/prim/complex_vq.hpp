#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::prim {

/// Rows as a length and sums of codewords of complex numbers, one per rotation pair: row = length * sum over stages of
/// (z_A + i z_B). A rotation of the pairs, which is a product with complex numbers, then commutes with decoding.
///
/// Source   CommVQ, arXiv:2506.18879.
/// Shapes   book [stages][base][dim], channels of a codeword in the order of a row's; the caller owns and keeps it. A row is the
///          codes A, B of every stage, a little-endian stream of bit_width(base - 1) bits each, then its length in fp16.
/// Numbers  stage by stage, of what the stages before leave: the `beam` codewords z_A that leave least, and with each of them
///          the best z_B; all pairs where beam is base. Of equal ones the first. Square errors in float32.
struct ComplexVq {
  static constexpr std::int32_t most_base = 256;
  static constexpr index_t most_codes = 256;  ///< of a row

  const float* book = nullptr;
  std::int32_t stages = 21;
  std::int32_t base = 64;
  std::int32_t channels = 0;
  std::int32_t beam = 4;
  RopePairing pairing = RopePairing::half_split;
  bool lengths = true;  ///< rows are divided by their length; else 1 is stored

  constexpr index_t codes() const { return index_t{2} * stages; }
  constexpr int code_bits() const { return static_cast<int>(std::bit_width(static_cast<std::uint32_t>(base - 1))); }
  constexpr index_t code_bytes() const { return (codes() * code_bits() + 7) / 8; }
  constexpr index_t row_bytes() const { return code_bytes() + 2; }
  constexpr const float* word(index_t stage, index_t code) const { return book + (stage * base + code) * channels; }
  /// Channels of pair j.
  constexpr index_t first_of(index_t j) const { return pairing == RopePairing::half_split ? j : 2 * j; }
  constexpr index_t second_of(index_t j) const { return pairing == RopePairing::half_split ? j + channels / 2 : 2 * j + 1; }

  constexpr std::size_t page_bytes(index_t slots, index_t) const { return static_cast<std::size_t>(slots * row_bytes()); }
  constexpr index_t group_slots() const { return 1; }
  bool valid(index_t dim) const {
    if (dim < 2 || dim > max_head_dim || dim % 2 != 0 || channels != dim || book == nullptr) return false;
    if (base < 2 || base > most_base || stages < 1 || codes() > most_codes || beam < 1) return false;
    for (index_t i = 0; i < static_cast<index_t>(stages) * base * dim; ++i)
      if (!(std::fabs(book[i]) <= 1e6f)) return false;
    return true;
  }
  std::int64_t fingerprint() const {
    auto f = static_cast<std::uint64_t>(((stages * 512 + base) * 512 + beam) * 4 + static_cast<std::int32_t>(pairing) * 2 + (lengths ? 1 : 0));
    for (index_t i = 0; i < (book == nullptr ? 0 : static_cast<index_t>(stages) * base * channels); ++i)
      f = f * 0x100000001b3u ^ std::bit_cast<std::uint32_t>(book[i]);
    return static_cast<std::int64_t>(f);
  }
};

static_assert(CodecDescription<ComplexVq>);

}  // namespace kvcondense::prim
