#pragma once

#include <kvcondense/retrieve/blocks/clusters.hpp>
#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads the keys of a fixed context whose cluster draws more than a threshold of attention.
///
/// Idea     keys of a context that is known before its questions are clustered once by direction; a cluster's mean says what
///          one of its keys draws, and one threshold lets heads need different numbers of keys.
/// Source   Hooper et al., Squeezed Attention, ACL 2025, arXiv:2411.09688; SqueezeAILab/SqueezedAttention.
/// Needs    keys as attention compares them, any position stage; a prompt, and the queries of the step that ends it.
/// Shapes   per KV head `clusters` * (slots - observe) centroids and 2 bytes per slot; one selection per KV head.
/// Cost     the index and, at the end of the first prompt, k-means over its keys: iterations + clusters passes. A step reads
///          the centroids, the labels, and the keys that pass.
/// Numbers  k-means on keys of length 1 (k-means++, at most `iterations` rounds), at most 8192 clusters; a centroid is the
///          mean of its keys as they are. Score of a key = exp(s q . c) / sum over clusters of count exp(s q . c), the mean
///          over a group's heads and over query tokens. The threshold is the `quantile` of the mean score of the context's
///          keys over the newest `observe` queries; `threshold` sets one for all heads. With `coarse` there are clusters of
///          clusters: fine ones are looked at, and count, only below coarse ones above `coarse_quantile`. The newest `observe`
///          of the prompt and all that is generated are read always; slots that come later take the label of the nearest
///          centroid.
/// Differs  a threshold per head by default, the paper's is pooled over all layers and heads (give it as `threshold`). A later
///          prompt is part of what is chosen from. Heads of a group share clusters.
/// Errors   invalid_argument unless all shares lie in [0, 1], clusters > 0, coarse <= clusters, observe >= 1, iterations >= 1.
struct Squeezed {
  static constexpr Descriptor about{"squeezed", Stage::retrieve, "arXiv:2411.09688"};
  static constexpr KeyState keys = KeyState::rotated;

  double clusters = 0.05;
  double coarse = 0.0;
  double quantile = 0.7;
  double coarse_quantile = 0.7;
  double threshold = 0.0;
  index_t observe = 100;
  index_t iterations = 300;

  constexpr auto pipeline() const {
    return Pipeline{Tokens{},
                    KeyClusters{clusters, coarse, observe, iterations, quantile, coarse_quantile},
                    EachQuery{},
                    PlainScore{},
                    ByHeads{Heads::group_mean},
                    AboveThreshold{threshold},
                    KeepGenerated{0, observe},
                    EveryCall{}};
  }
  Status validate(const CacheShape&) const {
    const auto share = [](double x) { return x >= 0.0 && x <= 1.0; };
    const bool good = share(clusters) && clusters > 0.0 && share(coarse) && coarse <= clusters && share(quantile) &&
                      share(coarse_quantile) && share(threshold) && observe >= 1 && observe <= index_t{1} << 31 && iterations >= 1 &&
                      iterations <= 1000;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<Squeezed, Cpu>());

}  // namespace kvcondense::retrieve
