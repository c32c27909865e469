#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// How many query rows have seen each slot, and means over those rows.
///
///   add(ctx, index_t rows, RaggedView<float> exposure)
///       counts the last `rows` query rows, of which the newest sees every slot, the one before all but
///       the newest slot, and so on: exposure[h][j] += min(rows, length(h) - j)
///   mean(ctx, RaggedView<const float> sum, RaggedView<const float> exposure, RaggedView<float> out)
///       out[h][j] = sum[h][j] / exposure[h][j]; 0 where no row has seen the slot
///
///   open_logs(ctx, RaggedView<const float> exposure, RaggedView<float> logs)
///       logs[h][j] = -inf where no row has seen the slot: the logarithm of a sum of nothing
///   decayed_mean(ctx, RaggedView<const float> logs, RaggedView<const float> exposure, float decay, RaggedView<float> out)
///       out[h][j] = logs[h][j] - log(1 - decay^exposure): the logarithm of a mean whose weights fade from row to row;
///       -inf where no row has seen the slot
///
/// Numbers  float32, so counts are exact to 2^24 rows.
template <Backend B>
struct SlotExposure {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
