#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/bipolar_int.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores keys as planes of bits that count as +1 or -1, and multiplies them with coded queries by counting bits.
///
/// Idea     Where every bit is +1 or -1, a product of few bits is exclusive ors and counts of all pairs of planes,
///          with no plane for a sign.
/// Source   Efficient Arbitrary Precision Acceleration for LLMs, arXiv:2409.17870 (bipolar INT).
/// Needs    keys and values only; head sizes and groups in whole bytes.
/// Shapes   groups of `group_size` channels of a token (0: its whole row). Keys: BipolarInt; values: GroupInt.
/// Cost     Bits + 32 / group_size per number (16 for forms without an offset), plus the exact window. A score
///          counts Bits * query_bits pairs of planes: on a CPU with 8-bit queries about twice the time of exact ones for
///          whole rows, more for small groups; it pays where the hardware counts many bits at once.
/// Numbers  codes and errors of GroupInt in the same form. Queries are coded to query_bits, 1 / (2^query_bits - 1) of the
///          largest of a group at most away; with the middle of a group's range they multiply exactly. query_bits
///          0 leaves queries exact, and counts nothing.
/// Errors   invalid_argument when 8 divides no group or row, a group no row, for query_bits other than 0, 4 to 8.
/// Differs  the paper codes weights and activations; keys get an offset, as ranges without zero need one. Form
///          `mid_rise` is its bipolar format alone.
template <int Bits>
struct BipolarInt {
  static constexpr Descriptor about{"bipolar_int", Stage::quant, "arXiv:2409.17870"};

  index_t group_size = 32;
  index_t query_bits = 8;
  prim::GroupForm form = prim::GroupForm::minimum;
  index_t residual_window = 0;  ///< newest slots that stay exact
  index_t sinks = 0;            ///< slots at the start that stay exact

  constexpr prim::BipolarInt<Bits> key_codec() const {
    return {.group_size = group_size, .form = form, .query_bits = query_bits};
  }
  constexpr prim::GroupInt<Bits> value_codec() const { return key_codec().numbers(); }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  constexpr Status validate(const CacheShape& shape) const {
    return codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::quant
