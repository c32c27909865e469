#pragma once

#include <cstdint>
#include <numbers>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Which rows of two layers are too far apart to share a direction.
enum class Apart : std::uint8_t {
  fraction,  ///< a part of the rows, those that are furthest apart
  range,     ///< those in the upper part of what lies between the least and the largest distance
};

/// How two rows become one direction.
struct DirectionRule {
  float weight = 0.6f;  ///< of the second row
  Apart apart = Apart::fraction;
  float part = 0.05f;  ///< see Apart
};

/// Angles below this are none, and above pi less this the rows are opposite; the latter as a distance.
inline constexpr double least_angle = 1e-3;
inline constexpr float opposite_distance = static_cast<float>(1.0 - least_angle / std::numbers::pi);

/// What the rows of one token in two layers have in common: a direction between theirs; each layer keeps its length.
///
///   distance(a, b, n, lengths) -> float     the angle between two rows over pi, 0 where one of them is zeros; lengths[2]
///   apart(rule, distance, n, kept) -> index_t   kept[i] = 1 for rows that stay as they are; returns how many
///   between(weight, a, b, n, out)           the shared direction: of length one, or zeros where both rows are
///
/// Numbers  sums in float64; the angle is 2 atan2(|u - v|, |u + v|) of the rows u, v brought to length one. Below 1e-3
///          directions are mixed linearly; above pi - 1e-3 there is none between them, `out` is the first row's, and the
///          rows stay as they are. Distances above 1 stay too and do not count in a range. The fraction is rounded up;
///          of equal distances the smaller place stays as it is.
template <Backend B>
struct SharedDirection {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
