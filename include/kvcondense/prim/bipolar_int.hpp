#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// The bipolar number of an n-bit word: every bit counts as +1 or -1, so that all planes of bits are treated alike.
/// Odd integers from -(2^bits - 1) to 2^bits - 1: there is no zero.
KVCONDENSE_HD constexpr std::int32_t bipolar_value(int bits, std::uint32_t word) {
  return 2 * static_cast<std::int32_t>(word) - ((1 << bits) - 1);
}

/// The dot product of `n` pairs of bipolar numbers of a_bits and b_bits, where `differ` is the sum over plane i of a and
/// plane j of b of 2^(i + j) times the number of places at which the two planes differ.
KVCONDENSE_HD constexpr std::int32_t bipolar_dot(index_t n, int a_bits, int b_bits, std::int32_t differ) {
  return static_cast<std::int32_t>(n) * ((1 << a_bits) - 1) * ((1 << b_bits) - 1) - 2 * differ;
}

/// Rows as planes of bits: the codes and parameters of GroupInt on the token axis, read as bipolar numbers v of which
/// value = v * scale / 2 + middle of the group's range. Products with queries that are coded in bipolar numbers too
/// are then exclusive ors and counts of bits.
///
/// Shapes   a page is one of GroupInt, but a row is `Bits` planes of dim / 8 bytes: bit c of plane p is bit p of the
///          code of channel c. Rows and groups are whole bytes.
template <int Bits>
struct BipolarInt {
  static_assert(Bits >= 1 && Bits <= 8, "kvcondense: BipolarInt stores codes of 1 to 8 bits.");
  static constexpr int bits = Bits;

  index_t group_size = 0;  ///< channels that share parameters, a multiple of 8; 0: the whole row
  GroupForm form = GroupForm::minimum;
  index_t query_bits = 8;  ///< of a query's number, 4 to 8; 0: queries are not coded

  /// What the codes and parameters of a page are.
  KVCONDENSE_HD constexpr GroupInt<Bits> numbers() const {
    return {.axis = GroupAxis::token, .group_size = group_size, .form = form};
  }
  constexpr std::size_t page_bytes(index_t slots, index_t dim) const { return numbers().page_bytes(slots, dim); }
  constexpr index_t group_slots() const { return 1; }
  constexpr bool valid(index_t dim) const {
    const bool query = query_bits == 0 || (query_bits >= 4 && query_bits <= 8);
    return query && dim % 8 == 0 && group_size % 8 == 0 && numbers().valid(dim);
  }
  constexpr std::int64_t fingerprint() const { return (numbers().fingerprint() * 16 + query_bits) * 2 + 1; }
};

static_assert(CodecDescription<BipolarInt<2>>);

}  // namespace kvcondense::prim
