#pragma once

#include <cmath>

#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/retrieve/blocks/codes.hpp>
#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads the tokens whose vector code scores best against a query at a constant distance.
///
/// Idea     far keys are scored as if all stood at one distance: then their positions do not matter, one codebook serves all
///          of them, and a score is a look-up.
/// Source   He et al., A2ATS, Findings of ACL 2025, arXiv:2502.12665; junhuihe-hjh/A2ATS.
/// Needs    raw keys (`reindex` or `rerotate`); ModelFacts::key_codes, a codebook per layer and KV head, and maybe
///          ModelFacts::key_metric, what keys are compared with; `retrieve::vq_metric` and `prim::KMeans` make them.
/// Shapes   per KV head one code of two bytes per slot; a choice per query head, all heads of a KV head read the union.
/// Cost     2 bytes of index per slot; a step reads the codes and the codebook, and up to group * share of the slots. A new
///          slot is compared with every centroid by the metric.
/// Numbers  code = argmin |(k - c) L|, float32; score = (q turned by `distance`) . c; int(share * slots) slots per query
///          head; the first `sinks` and the newest `local` are read always. Attention turns keys by their slots, exactly.
///          Several query tokens: the mean of their scores. Ties keep the slot in front, and many slots share a code; NaN
///          ranks last.
/// Errors   missing_input without a codebook; shape_mismatch when its rows are no multiple of the KV heads, at most 65536 each,
///          or its columns not head_dim; invalid_argument unless 0 <= share <= 1 and no other number is negative;
///          incompatible with a position stage that stores rotated keys.
struct A2ats {
  static constexpr Descriptor about{"a2ats", Stage::retrieve, "arXiv:2502.12665"};
  static constexpr KeyState keys = KeyState::raw;

  LayerMatrices key_codes{};
  LayerMatrices key_metric{};
  double share = 0.03;
  index_t sinks = 8;
  index_t local = 64;
  index_t distance = 2048;

  constexpr auto pipeline() const {
    return Pipeline{Tokens{},
                    VectorCodes{key_codes, key_metric},
                    FarQuery{distance},
                    PlainScore{},
                    ByHeads{Heads::group_union},
                    TopShare{{share}},
                    KeepEnds{sinks, local},
                    EveryCall{}};
  }
  constexpr const char* missing() const { return key_codes.empty() ? "key_codes" : nullptr; }
  Status validate(const CacheShape& shape) const {
    constexpr index_t most = index_t{1} << 31;
    if (!(share >= 0.0 && share <= 1.0) || sinks < 0 || sinks > most || local < 0 || local > most || distance < 0 || distance > most)
      return Status::invalid_argument;
    if (missing() != nullptr) return Status::missing_input;
    const auto fits = [&](const LayerMatrices& m) {
      return m.layers == shape.layers && m.columns == shape.head_dim && m.rows > 0 && m.rows % shape.kv_heads == 0;
    };
    if (!fits(key_codes) || key_codes.rows / shape.kv_heads > 65536) return Status::shape_mismatch;
    if (!key_metric.empty() && (!fits(key_metric) || key_metric.rows != shape.kv_heads * shape.head_dim)) return Status::shape_mismatch;
    return Status::ok;
  }
};

static_assert(check_retrieval_policy<A2ats, Cpu>());

/// What A2ATS compares keys with: the lower triangle L [dim, dim] with L L^t = Q^t Q / its root mean square + 1e-6, from
/// queries [n, dim] that were turned by the constant distance, those of a KV head's group together. Row-major, double inside.
inline void vq_metric(const float* queries, index_t n, index_t dim, float* l) {
  double mean_square = 0.0;
  double h[max_head_dim];  // one row of Q^t Q at a time
  const auto row = [&](index_t a) {
    for (index_t b = 0; b < dim; ++b) {
      h[b] = 0.0;
      for (index_t i = 0; i < n; ++i) h[b] += static_cast<double>(queries[i * dim + a]) * static_cast<double>(queries[i * dim + b]);
    }
  };
  for (index_t a = 0; a < dim; ++a) {
    row(a);
    for (index_t b = 0; b < dim; ++b) mean_square += h[b] * h[b];
  }
  const double scale = mean_square > 0.0 ? 1.0 / std::sqrt(mean_square / static_cast<double>(dim * dim)) : 0.0;
  for (index_t a = 0; a < dim; ++a) {
    row(a);
    for (index_t b = 0; b <= a; ++b) {
      double sum = h[b] * scale + (a == b ? 1e-6 : 0.0);
      for (index_t k = 0; k < b; ++k) sum -= static_cast<double>(l[a * dim + k]) * static_cast<double>(l[b * dim + k]);
      l[a * dim + b] = static_cast<float>(a == b ? std::sqrt(sum > 0.0 ? sum : 0.0) : l[b * dim + b] > 0.0f ? sum / static_cast<double>(l[b * dim + b]) : 0.0);
    }
    for (index_t b = a + 1; b < dim; ++b) l[a * dim + b] = 0.0f;
  }
}

}  // namespace kvcondense::retrieve
