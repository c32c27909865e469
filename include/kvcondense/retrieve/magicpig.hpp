#pragma once

#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/retrieve/blocks/hashes.hpp>
#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads a sample of the tokens, drawn by hashes that prefer keys near the query, and weighs it by the chance of each draw.
///
/// Idea     attention is a mean, and a mean is estimated by a sample better than by its largest terms alone: keys that meet the
///          query in hash tables are such a sample, with known chances.
/// Source   Chen et al., MagicPIG, ICLR 2025, arXiv:2410.16179; Infini-AI-Lab/MagicPIG.
/// Needs    ModelFacts::hash_planes, random planes for all layers and heads (`retrieve::fill_planes` draws them); a prompt: before
///          one has ended everything is read. Keys as attention compares them; any position stage.
/// Shapes   per KV head two bytes per table and slot, and a mean key; a selection per query head, of any size.
/// Cost     2 tables bytes of index per slot (300 at the paper's 150 tables, more than 16-bit keys of 128 numbers); a new slot takes
///          tables * bits inner products. A step reads the words, and the sampled keys twice: for their chance, then for
///          attention.
/// Numbers  side of a plane = inner product > 0, of the query as it is and of keys minus the mean of the first prompt's keys
///          between `sinks` and `local`. Sampled: the same word in at least two tables. Logit += -log(w + 1e-4), w = 1 - (1 - P)^(L -
///          1) (L P + 1 - P), P = p^bits, p = 1 - acos(cos(q, k - mean)) / pi, in double. The first `sinks` and the newest `local`
///          are read always and as they are. Calls of one query token choose; longer ones read all. lse is that of the weighted
///          sample. Layers whose number is a multiple of `dense_every` read all: 0, 16, 32, 48 and 64 of the paper's models.
///          NaN meets nothing.
/// Errors   missing_input without planes; shape_mismatch when their dim is not head_dim; invalid_argument unless they have 1 to 16
///          bits and 2 to 4096 tables, and sinks, local and dense_every are not negative.
struct MagicPig {
  static constexpr Descriptor about{"magicpig", Stage::retrieve, "arXiv:2410.16179"};
  static constexpr KeyState keys = KeyState::rotated;

  HashPlanes hash_planes{};
  index_t sinks = 4;
  index_t local = 64;
  index_t dense_every = 16;

  constexpr auto pipeline() const {
    return Pipeline{Tokens{},
                    SignHashes{hash_planes, sinks, local},
                    EachQuery{},
                    PlainScore{},
                    ByHeads{Heads::each},
                    Sampled{hash_planes.bits, hash_planes.tables, sinks},
                    KeepEnds{sinks, local},
                    EveryCall{},
                    Aggregate::last,
                    0,
                    Positions::stored,
                    1,
                    dense_every};
  }
  constexpr const char* missing() const { return hash_planes.empty() ? "hash_planes" : nullptr; }
  Status validate(const CacheShape& shape) const {
    constexpr index_t most = index_t{1} << 31;
    if (sinks < 0 || sinks > most || local < 0 || local > most) return Status::invalid_argument;
    if (missing() != nullptr) return Status::missing_input;
    if (hash_planes.dim != shape.head_dim) return Status::shape_mismatch;
    const bool good = dense_every >= 0 && hash_planes.bits >= 1 && hash_planes.bits <= 16 && hash_planes.tables >= 2 && hash_planes.tables <= 4096;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<MagicPig, Cpu>());

}  // namespace kvcondense::retrieve
