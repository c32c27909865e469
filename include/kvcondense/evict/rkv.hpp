#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/query_mass.hpp>
#include <kvcondense/evict/blocks/redundancy.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/then.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps what the newest queries look at and no other key repeats, while a long answer is written.
///
/// Idea     long reasoning repeats itself; of tokens that say the same only one needs to stay, and the
///          newest queries tell which tokens still matter.
/// Source   R-KV, arXiv:2505.24133. lambda 0.1 is the paper's, the authors' code has 0.07.
/// Needs    the queries of every step, and keys as they are stored: rotated, unless a position stage stores
///          them raw.
/// Shapes   queries [q_heads, tokens, head_dim], keys and scores [kv_heads, slots].
/// Cost     the last `window` queries of a layer, and every `slack` tokens: two reads of all keys for
///          attention, and between two and slots / 64 of them for repetition; slots * 28 bytes of workspace.
/// Numbers  importance: the largest logit of the query group, softmax over the slots before the window, mean
///          over the window's rows, maximum pooling; score = lambda * importance - (1 - lambda) * redundancy
///          (prim/row_redundancy.hpp), float32. A layer of `slack` slots per head more than its budget is cut
///          to it, in chunks of a prompt too. Ties keep the smaller slot; a key with NaN leaves first.
/// Differs  `slack` counts from the budget that is in force, also one that a wrapper set.
/// Errors   invalid_argument when window or slack is not positive, tokens <= window, kernel is even, or
///          lambda or threshold is out of range.
struct RKV {
  static constexpr Descriptor about{"rkv", Stage::evict, "arXiv:2505.24133"};
  static constexpr Inputs needs = Input::queries;

  index_t tokens = 1024;
  index_t window = 8;
  index_t kernel = 7;
  float lambda = 0.1f;
  float threshold = 0.5f;
  index_t slack = 128;

  constexpr auto pipeline() const {
    return Pipeline{QueryMass{window, prim::GroupReduce::max_logit, prim::RowReduce::mean, true},
                    Then{Pooled{prim::Pool::maximum, kernel}, Redundancy{lambda, threshold}},
                    Window{window},
                    Absolute{tokens},
                    TopK{},
                    Slack{slack}};
  }
  Status validate(const CacheShape&) const {
    const bool counts = window >= 1 && tokens > window && kernel >= 1 && kernel % 2 == 1 && slack >= 1;
    const bool mix = lambda >= 0.0f && lambda <= 1.0f && threshold >= -1.0f && threshold <= 1.0f;
    return counts && mix ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<RKV, Cpu>());

}  // namespace kvcondense::evict
