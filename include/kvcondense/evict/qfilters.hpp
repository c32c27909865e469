#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/key_product.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Condenses a prompt once, to the tokens whose keys reach furthest where the queries of their head tend to point.
///
/// Idea     queries of a head lie mostly along one direction, so a key's part along it foretells its logits: no query is
///          needed when tokens are chosen.
/// Source   Q-Filters, arXiv:2503.02812, as in kvpress, which protects nothing: recent = 0.
/// Needs    `query_filters`, a direction per (layer, KV head), which queries point away from, as the published ones:
///          `kvcondense-eval calibrate --method qfilters` makes them. Keys stored rotated. No attention, no queries.
/// Shapes   query_filters [layers, kv_heads, head_dim], scores [kv_heads, slots].
/// Cost     one read of every key, when it is new; 4 bytes per slot.
/// Numbers  score = -(filter . key) in float32. Keeps floor(keep * tokens seen + 1e-6), at least one, protected ones
///          included; ties keep the smaller slot; NaN leaves first. Generated tokens stay.
/// Errors   missing_input without filters; shape_mismatch when they are not of this model; incompatible with a position
///          stage that stores raw keys; invalid_argument unless 0 < keep <= 1 and recent >= 0.
struct QFilters {
  static constexpr Descriptor about{"qfilters", Stage::evict, "arXiv:2503.02812"};
  static constexpr Inputs needs{};

  double keep = 0.5;
  index_t recent = 0;
  HeadRows query_filters{};  ///< borrowed

  const char* missing() const { return query_filters.empty() ? "query_filters" : nullptr; }

  constexpr auto pipeline() const {
    return Pipeline{KeyProduct{{query_filters}}, NoPool{}, Recent{recent}, Ratio{keep}, TopK{}, PrefillOnce{}};
  }
  Status validate(const CacheShape& shape) const {
    if (!(keep > 0.0 && keep <= 1.0) || recent < 0) return Status::invalid_argument;
    if (query_filters.empty()) return Status::missing_input;
    return query_filters.fits(shape, shape.head_dim) ? Status::ok : Status::shape_mismatch;
  }
};

static_assert(check_eviction_policy<QFilters, Cpu>());

}  // namespace kvcondense::evict
