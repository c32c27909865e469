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

/// Condenses a prompt once, to what its last queries look at, with the neighbourhoods of that.
///
/// Idea     the end of a prompt (the question) already shows which tokens the answer will need;
///          pooling keeps the words around them readable.
/// Source   SnapKV, arXiv:2404.14469; group mean before pooling, as in the Ada-KV code.
/// Needs    attention of the last `window` rows of the step that ends the prompt: its last chunk should be as long.
/// Shapes   mass and scores [kv_heads, slots].
/// Cost     slots * 8 bytes of workspace when a prefill ends; no state; no allocation.
/// Numbers  sum of rows, mean over the query group, pooled over the slots before the window; float32;
///          ties (maximum pooling makes plateaus) keep the smaller slot. Generated tokens stay.
/// Errors   invalid_argument when window is not positive, tokens <= window, or kernel is even.
struct SnapKV {
  static constexpr Descriptor about{"snapkv", Stage::evict, "arXiv:2404.14469"};
  static constexpr Inputs needs = Input::attention;

  index_t tokens = 1024;
  index_t window = 32;
  index_t kernel = 7;
  prim::Pool pool = prim::Pool::maximum;

  constexpr auto pipeline() const {
    return Pipeline{AttentionMass<PerHead, Latest>{last_rows(window)},
                    Pooled{pool, kernel},
                    Window{window},
                    Absolute{tokens},
                    TopK{},
                    PrefillOnce{}};
  }
  Status validate(const CacheShape&) const {
    const bool good = window >= 1 && tokens > window && kernel >= 1 && kernel % 2 == 1;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<SnapKV, Cpu>());

}  // namespace kvcondense::evict
