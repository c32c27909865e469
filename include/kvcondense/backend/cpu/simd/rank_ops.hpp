#pragma once

#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/rank_bits.hpp>

namespace kvcondense::prim::cpu {

/// The lowest of all scores that were shown so far, ascending: what leaves a full cache is a few.
struct Lowest {
  static constexpr index_t most = 32;

  index_t wanted = 1;  ///< at most `most`
  index_t found = 0;
  std::uint32_t key[most];  ///< `rank_bits` of the scores
  index_t place[most];

  /// What a key has to be below to be taken: of equal ones those that came first stay.
  std::uint32_t bar() const { return found < wanted ? 0xffffffffu : key[wanted - 1]; }
  void take(std::uint32_t k, index_t at) {
    index_t i = found < wanted ? found++ : wanted - 1;
    for (; i > 0 && key[i - 1] > k; --i) key[i] = key[i - 1], place[i] = place[i - 1];
    key[i] = k, place[i] = at;
  }
};

/// The inner loops of ranking for one instruction set: exact, so all give the same answers.
struct RankOps {
  /// The cutoff of the k largest of n scores, 1 <= k <= n.
  RowCutoff (*cutoff)(const float* scores, index_t n, index_t k);

  /// Writes first + i for the scores i above the cutoff, and for the first `ties` at it, ascending; `out` has room for n.
  /// Returns how many, adds NaN scores to `nan`.
  index_t (*pick)(const float* scores, index_t n, std::int32_t first, RowCutoff cut, std::int32_t* out, index_t& nan);

  /// Shows n scores, whose places are first, first + 1, ..., from the front or from the back.
  void (*lowest)(const float* scores, index_t n, index_t first, bool backward, Lowest& found);
};

}  // namespace kvcondense::prim::cpu
