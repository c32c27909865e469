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
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Drops what the newest query attends least.
///
/// Idea     the current query knows best what is still needed; nothing is accumulated.
/// Source   Token Omission Via Attention, arXiv:2401.06104.
/// Needs    attention of the last query row.
/// Shapes   mass [kv_heads, slots]; one kept set per layer, the same for every head.
/// Cost     slots * 4 bytes of workspace; no state; no allocation.
/// Numbers  mean over all query heads in float32; ties keep the smaller slot. The newest token is an
///          ordinary candidate and may leave at once.
/// Errors   invalid_argument when tokens is not positive; not_supported when heads of a layer hold
///          different numbers of slots.
struct Tova {
  static constexpr Descriptor about{"tova", Stage::evict, "arXiv:2401.06104"};
  static constexpr Inputs needs = Input::attention;

  index_t tokens = 1024;

  constexpr auto pipeline() const {
    return Pipeline{AttentionMass<AllHeads, Latest>{last_rows(1), Reduce::sum, {Reduce::mean}, {}},
                    NoPool{},
                    NoProtect{},
                    Absolute{tokens},
                    TopK{},
                    PrefillOnceAndEveryStep{}};
  }
  Status validate(const CacheShape&) const {
    return tokens < 1 ? Status::invalid_argument : Status::ok;
  }
};

static_assert(check_eviction_policy<Tova, Cpu>());

}  // namespace kvcondense::evict
