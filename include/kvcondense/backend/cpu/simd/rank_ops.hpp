#pragma once

#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/rank_bits.hpp>

namespace kvcondense::prim::cpu {

/// The inner loops of ranking for one instruction set: exact, so all give the same answers.
struct RankOps {
  /// The cutoff of the k largest of n scores, 1 <= k <= n.
  RowCutoff (*cutoff)(const float* scores, index_t n, index_t k);

  /// Writes first + i for the scores i above the cutoff, and for the first `ties` at it, ascending; `out` has room for n.
  /// Returns how many, adds NaN scores to `nan`.
  index_t (*pick)(const float* scores, index_t n, std::int32_t first, RowCutoff cut, std::int32_t* out, index_t& nan);
};

}  // namespace kvcondense::prim::cpu
