#pragma once

#include <kvcondense/retrieve/blocks/channels.hpp>
#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads a few channels of all keys, then the tokens that draw most by them, and lets the mean value stand for the rest.
///
/// Idea     a query's largest components decide most of its logits; what is not read is not lost but averaged.
/// Source   Ribar et al., SparQ Attention, ICML 2024, arXiv:2312.04985; graphcore-research/llm-inference-research.
/// Needs    keys as attention compares them; any position stage.
/// Shapes   per KV head a second copy of the keys, channel by channel, and a sum of values [value_dim] per 64 slots; a
///          selection per query head.
/// Cost     2 head_dim bytes of index per slot in 16 bits, half as much again as the cache; a step reads `channels` of
///          head_dim channels per query head, and `tokens` slots (or the part `share`) per query head.
/// Numbers  with i1 the `channels` largest |q|, t = sqrt(head_dim sum over i1 |q| / sum |q|): approximate attention s =
///          softmax over slots of q . k over i1 / t. The tokens with the largest s are attended to exactly; out = a y + (1 -
///          a) v, a what part of s they have, v the mean of all values, float32. lse is that of what was read. Tokens no step
///          has seen are read and counted in a. Calls of one query token choose; longer ones read all. Ties keep the slot
///          (the channel) in front; NaN ranks last.
///          `local` newest slots are among the chosen in any case, as far as there is room; the original forces none.
/// Errors   invalid_argument unless channels >= 1, tokens >= 0, local >= 0 and share is in [0, 1].
struct SparQ {
  static constexpr Descriptor about{"sparq", Stage::retrieve, "arXiv:2312.04985"};
  static constexpr KeyState keys = KeyState::rotated;

  index_t channels = 16;
  index_t tokens = 0;
  double share = 0.0625;
  index_t local = 0;  ///< newest slots that are among the chosen in any case

  constexpr auto pipeline() const {
    return Pipeline{Tokens{},
                    ChannelPages{channels},
                    TopChannels{channels},
                    PlainScore{},
                    ByHeads{Heads::each},
                    TopWithShare{tokens, share, channels, local},
                    KeepEnds{},
                    EveryCall{},
                    Aggregate::mean,
                    0,
                    Positions::stored,
                    1};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = channels >= 1 && channels <= most && tokens >= 0 && tokens <= most && share >= 0.0 && share <= 1.0 && local >= 0 && local <= most;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<SparQ, Cpu>());

}  // namespace kvcondense::retrieve
