#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/blocks/unit_rows.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads chunks of the prompt that its last query chose, and keeps to them: the cache of a drafting pass.
///
/// Idea     drafts may err, so a draft reads a small fixed part of the cache; new tokens take the place of the chunks
///          that were chosen last.
/// Source   Sun et al., TriForce, COLM 2024, arXiv:2404.11912; Infini-AI-Lab/TriForce.
/// Needs    keys as attention compares them, any position stage; the queries of the step that ends a prompt.
/// Shapes   per KV head and chunk one row [head_dim] in the cache's dtype; a selection per query head.
/// Cost     2 head_dim / chunk bytes of index per slot in 16 bits; the index is read when a prompt ends, not in steps.
/// Numbers  score = q . mean key, float32, q the prompt's last query. Chunk 0, the best tokens / chunk - 1 others in the
///          order of scores, what is left of the prompt behind its last whole chunk, and all tokens since: those take
///          slots from the end of that order, until only chunk 0 and they are read. `choose_anew` and every prompt
///          choose again; so does the next call after an eviction. A fork of the cache with another recipe verifies:
///          drafts that are refused are truncated. Ties keep the chunk in front; NaN ranks last.
/// Errors   invalid_argument unless chunk >= 1 and tokens >= 2 chunk.
struct TriForce {
  static constexpr Descriptor about{"triforce", Stage::retrieve, "arXiv:2404.11912"};
  static constexpr KeyState keys = KeyState::rotated;

  index_t chunk = 8;
  index_t tokens = 4096;

  constexpr auto pipeline() const {
    return Pipeline{Pages{chunk},          MeanKey{chunk},
                    EachQuery{},           PlainScore{},
                    ByHeads{Heads::each},  RankedUnits{tokens / chunk - 1, tokens / chunk * chunk - chunk},
                    KeepGenerated{chunk},  WhenAsked{},
                    Aggregate::last};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = chunk >= 1 && chunk <= most && tokens <= most && tokens >= 2 * chunk;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<TriForce, Cpu>());

/// Whether a draft is kept when the model verifies it, and what stands in its place if not. Whatever drafts, the tokens that
/// come out are distributed as the model's own: accepted with chance min(1, p / q), else drawn from what p has and q has not.
struct DraftRule {
  std::span<const float> model;  ///< p, chances of every token where the draft stands; they sum to 1
  std::span<const float> draft;  ///< q, the chances that the draft was drawn from

  double chance(std::size_t token) const {
    const auto p = static_cast<double>(model[token]), q = static_cast<double>(draft[token]);
    return p >= q ? 1.0 : p / q;
  }
  /// Of all drafts of this place, the part that is kept.
  double expected() const {
    double sum = 0.0;
    for (std::size_t i = 0; i < model.size(); ++i) sum += static_cast<double>(std::min(model[i], draft[i]));
    return sum;
  }
  /// The distribution in the place of a refused draft; the model's own where that leaves nothing.
  void residual(std::span<float> out) const {
    double sum = 0.0;
    for (std::size_t i = 0; i < model.size(); ++i) sum += static_cast<double>(std::max(0.0f, model[i] - draft[i]));
    for (std::size_t i = 0; i < model.size(); ++i)
      out[i] = sum > 0.0 ? static_cast<float>(static_cast<double>(std::max(0.0f, model[i] - draft[i])) / sum) : model[i];
  }
  /// The token of this place: `token` if it is kept. Both numbers are uniform in [0, 1) and drawn for this place alone;
  /// `scratch` holds a number per token. What stands behind a token that is not kept is truncated from the cache.
  std::size_t next(std::size_t token, double keep, double draw, std::span<float> scratch) const {
    if (keep < chance(token)) return token;
    residual(scratch);
    std::size_t last = 0;
    for (std::size_t i = 0; i < scratch.size(); ++i)
      if (scratch[i] > 0.0f) {
        last = i;
        if ((draw -= static_cast<double>(scratch[i])) < 0.0) return i;
      }
    return last;  // rounding
  }
};

/// Tokens that a round of `drafts` drafts gives in the mean, the model's own behind them included, when each is kept with
/// chance `kept` (Leviathan et al., arXiv:2211.17192).
inline double tokens_per_round(double kept, index_t drafts) {
  if (kept >= 1.0) return static_cast<double>(drafts + 1);
  return (1.0 - std::pow(kept, static_cast<double>(drafts + 1))) / (1.0 - kept);
}

}  // namespace kvcondense::retrieve
