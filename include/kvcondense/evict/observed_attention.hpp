#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/sum_exposure.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Condenses a prompt once, to the tokens that drew most attention from each row that saw them.
///
/// Idea     a plain sum of attention (h2o) favours old tokens, which more rows could see; the mean over
///          those rows does not.
/// Source   kvpress, ObservedAttentionPress, which protects nothing: sinks = recent = 0.
/// Needs    attention of every query row: chunks of a prompt add up, and rows of generated tokens count
///          when another prompt ends.
/// Shapes   mass and scores [kv_heads, slots].
/// Cost     8 bytes per slot for the sum and the mark of its rows; slots * 4 bytes of workspace when a
///          prefill ends; no allocation.
/// Numbers  sum of rows, mean over the query group, divided by the rows that saw the slot; float32. The
///          newest tokens have few rows and noisy means: that is why they stay. Keeps
///          floor(keep * tokens seen + 1e-6), at least one, protected ones included; ties keep the smaller slot.
///          Generated tokens stay.
/// Errors   invalid_argument unless 0 < keep <= 1, or when sinks or recent is negative.
struct ObservedAttention {
  static constexpr Descriptor about{"observed_attention", Stage::evict, "kvpress"};
  static constexpr Inputs needs = Input::attention;

  double keep = 0.5;
  index_t sinks = 0;
  index_t recent = 32;

  constexpr auto pipeline() const {
    return Pipeline{AttentionMass<PerHead, SumExposure>{all_rows()},
                    NoPool{},
                    Both{Sinks{sinks}, Recent{recent}},
                    Ratio{keep},
                    TopK{},
                    PrefillOnce{}};
  }
  Status validate(const CacheShape&) const {
    const bool good = keep > 0.0 && keep <= 1.0 && sinks >= 0 && recent >= 0;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<ObservedAttention, Cpu>());

}  // namespace kvcondense::evict
