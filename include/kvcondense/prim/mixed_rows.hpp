#pragma once

#include <concepts>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim {

/// Slots of a group that a part of it is, rounded up.
constexpr index_t slots_of_part(double part, index_t group) {
  const double n = part * static_cast<double>(group);
  const auto whole = static_cast<index_t>(n);
  return whole + static_cast<index_t>(n - static_cast<double>(whole) > 1e-6);
}

/// Rows of two precisions: of every `group` slots the `high_slots` with the largest scores are stored by one codec,
/// the others by another. A slot never changes its class.
///
/// Shapes   a page is groups of a bit map, the high rows and the low rows, each class in slot order, each part on a
///          multiple of 4 bytes. A codec whose slots share parameters shares them in a whole class.
template <class High, class Low>
struct MixedRows {
  High high{};
  Low low{};
  index_t group = 64;
  index_t high_slots = 16;

  /// Numbers of one group, which a coder holds at once.
  static constexpr index_t most_numbers = 32768;

  KVCONDENSE_HD constexpr index_t low_slots() const { return group - high_slots; }
  KVCONDENSE_HD static constexpr index_t aligned(index_t bytes) { return (bytes + 3) / 4 * 4; }
  constexpr index_t high_at() const { return aligned((group + 7) / 8); }
  constexpr index_t low_at(index_t dim) const { return high_at() + aligned(static_cast<index_t>(high.page_bytes(high_slots, dim))); }
  constexpr index_t group_bytes(index_t dim) const {
    return low_at(dim) + aligned(static_cast<index_t>(low.page_bytes(low_slots(), dim)));
  }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const {
    return static_cast<std::size_t>((slots + group - 1) / group * group_bytes(dim));
  }
  constexpr index_t group_slots() const { return group; }
  constexpr bool valid(index_t dim) const {
    if (dim < 1 || group < 2 || high_slots < 1 || high_slots >= group || group > most_numbers / dim) return false;
    const bool whole = (high.group_slots() == 1 || high.group_slots() == high_slots) &&
                       (low.group_slots() == 1 || low.group_slots() == low_slots());
    return whole && high.valid(dim) && low.valid(dim);
  }
  constexpr std::int64_t fingerprint() const {
    return mix_fingerprints(mix_fingerprints(high.fingerprint(), low.fingerprint()), group * 1024 + high_slots);
  }
};

template <class High, class Low>
MixedRows(High, Low, index_t, index_t) -> MixedRows<High, Low>;

/// Whether a codec tells slots apart by a score. Its backend half then has
///
///   encode(codec, page, first, count, rows, const float* scores) -> index_t   one score per row
///   grade(codec, page, slot) -> float       a score that puts the slot into its class again
template <class C>
constexpr bool wants_scores(const C& codec) {
  if constexpr (requires { codec.wants_scores(); }) return codec.wants_scores();
  else if constexpr (requires { codec.high_slots; }) return true;
  else return false;
}
template <class T, class C>
constexpr bool wants_scores(const Transformed<T, C>& both) {
  return wants_scores(both.codec);
}

}  // namespace kvcondense::prim
