#pragma once

namespace kvcondense::any::detail {

/// Far above any cache, and sums of a few of them fit every counter.
inline constexpr double most_slots = 1 << 28;

}  // namespace kvcondense::any::detail
