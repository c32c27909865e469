#pragma once

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

/// Reads the frames of a video that a question resembles, and reads them as if nothing had been between them.
///
/// Idea     a frame's tokens are one block, its mean key says what is in it; a question is answered from the few frames whose
///          mean key meets its mean query, in their order in time.
/// Source   Di et al., ReKV, ICLR 2025, arXiv:2503.00540; Becomebright/ReKV.
/// Needs    raw keys (`reindex` or `rerotate`); the queries of every step; KV heads of equal length (no eviction that differs
///          between heads).
/// Shapes   per KV head and frame one row [head_dim] in the cache's dtype; one selection for all heads of a layer.
/// Cost     2 head_dim / frame bytes of index per slot in 16 bits; a question reads the index once in `attend` and once in its
///          step, later calls only the frames.
/// Numbers  frames begin behind the first `init` slots. Score = sum over query heads of the mean raw query of a question's
///          tokens times the mean raw key of its KV head, float32, nothing divided by lengths. Calls of 2 to `question` query
///          tokens choose, those of one token go on with what was chosen; a longer one, as when frames come in, reads all.
///          Read are the first `init`, `frames` frames and what is behind the last whole frame, each at its place in that list:
///          positions have no gaps. A question is taken back with `truncate`. Ties keep the earlier frame; NaN ranks last.
/// Differs  frames come in with whatever attention the engine gives them; the original's window of the newest frames is its
///          own matter (prefill_mask.hpp).
/// Errors   invalid_argument unless frame >= 1, frames >= 1, init >= 0, 1 <= question <= 4096; incompatible with a position stage
///          that stores rotated keys; not_supported in a call where KV heads hold different numbers of slots.
struct ReKv {
  static constexpr Descriptor about{"rekv", Stage::retrieve, "arXiv:2503.00540"};
  static constexpr KeyState keys = KeyState::raw;

  index_t frame = 196;
  index_t frames = 64;
  index_t init = 0;
  index_t question = 128;

  constexpr auto pipeline() const {
    return Pipeline{Pages{frame, init},
                    MeanKey{frame},
                    EachQuery{},
                    PlainScore{},
                    ByHeads{Heads::all_sum},
                    TopUnits{frames},
                    KeepEnds{init, 1},
                    EveryQuestion{},
                    Aggregate::mean,
                    0,
                    Positions::compact,
                    question};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = frame >= 1 && frame <= most && frames >= 1 && frames <= most && init >= 0 && init <= most && question >= 1 && question <= 4096;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<ReKv, Cpu>());

}  // namespace kvcondense::retrieve
