#pragma once

#include <cmath>
#include <span>

#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/marked_blocks.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads the blocks whose landmark tokens draw most, each block with its landmark's weight.
///
/// Idea     a model that is trained with a landmark token behind every block can reach a block through it: the landmark's
///          share of attention is the block's.
/// Source   Mohtashami and Jaggi, Landmark Attention, NeurIPS 2023, arXiv:2305.16300; epfml/landmark-attention.
/// Needs    a model that was trained so: every (tokens + 1)-th token of a sequence is a landmark. Keys as attention compares
///          them, any position stage; nothing may leave the middle of the cache, or blocks move.
/// Shapes   per KV head and block the landmark's key [head_dim] in the cache's dtype; a selection per query head.
/// Cost     2 head_dim / (tokens + 1) bytes of index per slot in 16 bits; a step reads the landmarks, and the keys of chosen
///          blocks twice: for their sum, then for attention.
/// Numbers  C: the tokens behind the last landmark, that are read always. A top softmax over the landmarks of the `blocks` best
///          and C; a token of a block has its softmax within the block times the landmark's share; a landmark itself gives
///          nothing. Calls of one query token choose; a longer one, like a prompt, is attention without groups. lse is that of
///          the top softmax. Ties keep the block in front; NaN ranks last.
/// Differs  retrieved blocks stay at their positions; the original moves them next to the current section. Prompts are not
///          grouped: `landmark_weights` is that softmax for engines that do it themselves.
/// Errors   invalid_argument unless tokens >= 1 and blocks >= 1.
struct Landmark {
  static constexpr Descriptor about{"landmark", Stage::retrieve, "arXiv:2305.16300"};
  static constexpr bool trained = true;
  static constexpr KeyState keys = KeyState::rotated;

  index_t tokens = 50;
  index_t blocks = 4;

  constexpr auto pipeline() const {
    return Pipeline{MarkedBlocks{tokens},
                    LastKey{tokens + 1},
                    EachQuery{},
                    PlainScore{},
                    ByHeads{Heads::each},
                    GroupedBlocks{blocks, tokens},
                    KeepEnds{},
                    EveryCall{},
                    Aggregate::last,
                    0,
                    Positions::stored,
                    1};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    return tokens >= 1 && tokens < most && blocks >= 1 && blocks <= most ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<Landmark, Cpu>());

/// The grouped softmax of one query: logits of n slots in blocks of tokens + 1, the last of each full block its landmark.
/// `open(block)` says whether a block is one of those retrieved. Weights sum to 1.
template <class Open>
void landmark_weights(std::span<const float> logits, index_t tokens, Open&& open, float* weights) {
  const auto n = static_cast<index_t>(logits.size()), size = tokens + 1, full = n / size;
  const auto l = [&](index_t i) { return static_cast<double>(logits[static_cast<std::size_t>(i)]); };
  const auto softmax = [&](index_t first, index_t last, double share) {
    double top = -1e300, sum = 0.0;
    for (index_t i = first; i < last; ++i) top = std::max(top, l(i));
    for (index_t i = first; i < last; ++i) sum += std::exp(l(i) - top);
    for (index_t i = first; i < last; ++i) weights[i] = static_cast<float>(share * std::exp(l(i) - top) / sum);
  };
  double top = -1e300, sum = 0.0;
  const auto each_top = [&](auto&& use) {
    for (index_t b = 0; b < full; ++b)
      if (open(b)) use(b * size + tokens);
    for (index_t i = full * size; i < n; ++i) use(i);
  };
  each_top([&](index_t i) { top = std::max(top, l(i)); });
  each_top([&](index_t i) { sum += std::exp(l(i) - top); });
  for (index_t i = 0; i < n; ++i) weights[i] = 0.0f;
  for (index_t b = 0; b < full; ++b)
    if (open(b)) softmax(b * size, b * size + tokens, std::exp(l(b * size + tokens) - top) / sum);
  for (index_t i = full * size; i < n; ++i) weights[i] = static_cast<float>(std::exp(l(i) - top) / sum);
}

}  // namespace kvcondense::retrieve
