#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Rows that have seen a slot whose mark is this. The mark holds the bits of a number: marks are stored, moved and never added up.
KVCONDENSE_HD constexpr std::uint32_t exposed_rows(float mark, std::uint32_t stepped) {
  return stepped - detail::bit_cast<std::uint32_t>(mark);
}
/// The mark of a slot that so many rows have seen.
KVCONDENSE_HD constexpr float exposure_mark(std::uint32_t rows, std::uint32_t stepped) { return detail::bit_cast<float>(stepped - rows); }

/// How many query rows have seen each slot, and means over those rows. A slot keeps one number, its mark: what `stepped`, the
/// tokens of all steps so far, was before rows saw it. So a step whose rows are its tokens writes the marks of these alone.
///
///   count(ctx, index_t stepped, index_t appended, index_t rows, RaggedView<float> mark)
///       a step that brought the newest `appended` slots, of whose query rows the last `rows` count. The newest row sees every
///       slot, the one before all but the newest slot, and so on: min(rows, length(h) - j) see slot j, for the first time where
///       it is new. `stepped`: with those of this step. Other marks are written only where rows is not appended
///   begin(ctx, index_t stepped, index_t rows, RaggedView<float> mark)
///       the same where no row has seen any slot before
///   mean(ctx, RaggedView<const float> sum, RaggedView<const float> mark, index_t stepped, RaggedView<float> out)
///       out[h][j] = sum[h][j] / rows that have seen the slot; 0 where none has
///
///   open_logs(ctx, index_t appended, RaggedView<float> logs)
///       logs[h][j] = -inf in the newest `appended` slots, which no row has seen before this step: the logarithm of a sum of nothing
///   decayed_mean(ctx, RaggedView<const float> logs, RaggedView<const float> mark, index_t stepped, float decay, RaggedView<float> out)
///       out[h][j] = logs[h][j] - log(1 - decay^rows): the logarithm of a mean whose weights fade from row to row;
///       -inf where no row has seen the slot
///
///   row_divisors(ctx, index_t seen, index_t rows, float* out)
///       out[r] = seen / tokens before row r, of the newest `rows` of so many tokens; +inf where there are none: what a row's
///       shares are divided by where rows are to count by how much they saw
///
/// Numbers  rows modulo 2^32; means divide by them in float32, which has them exactly up to 2^24.
template <Backend B>
struct SlotExposure {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
