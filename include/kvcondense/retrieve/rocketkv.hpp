#pragma once

#include <kvcondense/retrieve/blocks/group_bound.hpp>
#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads pages by their channel ranges in the few channels that a group's queries agree on: the second stage of RocketKV.
///
/// Idea     the largest components of a group's mean magnitude stand for all of its queries; with one sign per channel the
///          group reads one number per page and channel.
/// Source   Behnam et al., RocketKV, ICML 2025, arXiv:2502.14051; as TensorRT-LLM runs it.
/// Needs    keys as attention compares them, any position stage. The first stage is an eviction: snapkv(window=32,
///          kernel=63) + rocketkv.
/// Shapes   per KV head and page two rows [head_dim] in the cache's dtype; one selection per KV head.
/// Cost     4 head_dim / page bytes of index per slot in 16 bits; a step reads the index and tokens slots.
/// Numbers  channels: the `channels` largest of mean |q| over the group. Page logit of a head = sum over them of q_i times the
///          page's largest number where the group's q_i sum to more than zero, else its smallest, over SparQ's temperature of
///          the head; softmax over pages, the mean over the group. tokens / page pages; the page of the newest token is read
///          always. Several query tokens: the mean of their scores. Ties keep the page in front; NaN ranks last.
/// Differs  whole pages are read, the original cuts the last one to the token. A shared sign is no bound for every head.
/// Errors   invalid_argument unless page >= 1, tokens >= page, channels >= 1.
struct RocketKV {
  static constexpr Descriptor about{"rocketkv", Stage::retrieve, "arXiv:2502.14051"};
  static constexpr KeyState keys = KeyState::rotated;

  index_t page = 16;
  index_t tokens = 512;
  index_t channels = 32;

  constexpr auto pipeline() const {
    return Pipeline{Pages{page},
                    GroupMinMax{{page}},
                    GroupChannels{channels},
                    SoftmaxScore{1.0f},
                    ByHeads{Heads::group_mean},
                    TopUnits{tokens / page},
                    KeepEnds{0, 1},
                    EveryCall{}};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = page >= 1 && page <= most && tokens >= page && tokens <= most && channels >= 1 && channels <= most;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<RocketKV, Cpu>());

}  // namespace kvcondense::retrieve
