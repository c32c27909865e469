#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim {

/// Rows of another codec, and what it got most wrong, by chunks of slots: the largest and smallest numbers of every
/// vector, and a product of two thin matrices near to the error of the others. row = codec + A B^t + outliers.
///
/// Shapes   a vector is a channel of a chunk or a row, by `axis`; of its n numbers round(outliers * n / 2) of each end
///          are outliers. The codec sees the vector's mean in their places, so that they widen no range.
///          A page is the codec's page, then per chunk, each part on a multiple of 4 bytes as a whole: A [rank][chunk],
///          B [rank][dim], the outliers' addends [vectors][2 * of an end], all fp16, and their places in the
///          vectors, ascending, of one byte, or of two where a vector is longer than 256.
/// Numbers  A B^t is `loops` power iterations (from a fixed start). An outlier's addend is what codec
///          and A B^t leave of it, so it comes back with the error of one fp16 number.
template <class C>
struct Corrected {
  C codec{};
  GroupAxis axis = GroupAxis::channel;  ///< along which outliers are sought
  index_t chunk = 64;
  double outliers = 0.0;  ///< part of a vector
  index_t rank = 0;
  index_t loops = 3;

  static constexpr index_t most_numbers = 16384;  ///< of a chunk, which a coder holds at once
  static constexpr index_t most_slots = 1024;     ///< of a chunk
  static constexpr index_t most_rank = 8;
  static constexpr index_t most_loops = 64;

  KVCONDENSE_HD static constexpr index_t aligned(index_t bytes) { return (bytes + 3) / 4 * 4; }
  KVCONDENSE_HD constexpr index_t vectors(index_t dim) const { return axis == GroupAxis::channel ? dim : chunk; }
  KVCONDENSE_HD constexpr index_t vector_size(index_t dim) const { return axis == GroupAxis::channel ? chunk : dim; }
  /// Outliers of one end of a vector.
  constexpr index_t each_end(index_t dim) const {
    const index_t n = vector_size(dim);
    return std::min(n / 2, static_cast<index_t>(outliers * static_cast<double>(n) / 2 + 0.5));
  }
  constexpr index_t outlier_count(index_t dim) const { return vectors(dim) * 2 * each_end(dim); }
  KVCONDENSE_HD constexpr index_t place_bytes(index_t dim) const { return vector_size(dim) > 256 ? 2 : 1; }
  constexpr bool corrects(index_t dim) const { return rank > 0 || each_end(dim) > 0; }

  /// Where parts begin: the corrections in a page, and in them B and the outliers.
  constexpr index_t corrections_at(index_t slots, index_t dim) const {
    return aligned(static_cast<index_t>(codec.page_bytes(slots, dim)));
  }
  KVCONDENSE_HD constexpr index_t b_at() const { return 2 * rank * chunk; }
  KVCONDENSE_HD constexpr index_t addends_at(index_t dim) const { return 2 * rank * (chunk + dim); }
  constexpr index_t places_at(index_t dim) const { return addends_at(dim) + 2 * outlier_count(dim); }
  constexpr index_t chunk_bytes(index_t dim) const {
    return aligned(places_at(dim) + outlier_count(dim) * place_bytes(dim));
  }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const {
    return static_cast<std::size_t>(corrections_at(slots, dim) + (slots + chunk - 1) / chunk * chunk_bytes(dim));
  }
  constexpr index_t group_slots() const { return chunk; }
  constexpr bool valid(index_t dim) const {
    if (dim < 1 || chunk < 1 || chunk > most_slots || chunk > most_numbers / dim) return false;
    if (!(outliers >= 0.0 && outliers <= 1.0) || loops < 1 || loops > most_loops) return false;
    if (rank < 0 || rank > std::min({most_rank, chunk, dim})) return false;
    return codec.valid(dim) && chunk % codec.group_slots() == 0;
  }
  constexpr std::int64_t fingerprint() const {
    std::int64_t f = mix_fingerprints(codec.fingerprint(), detail::bit_cast<std::int64_t>(outliers));
    f = mix_fingerprints(f, chunk * 16384 + rank * 1024 + loops * 8 + static_cast<std::int64_t>(axis));
    return f;
  }
};

static_assert(CodecDescription<Corrected<GroupInt<2>>>);

}  // namespace kvcondense::prim
