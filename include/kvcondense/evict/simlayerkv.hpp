#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/evict/blocks/layer_binary.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps everything of a prompt, or in layers whose last query looks at hardly anything else only the first and the newest tokens.
///
/// Idea     some layers are lazy: they look at the beginning and at what is near whatever is asked, and one query shows which.
/// Source   SimLayerKV, arXiv:2410.13846. Its thresholds: 0.9 for Llama 3, 0.65 for Llama 2, 0.8 for Mistral, 0.85 for Qwen.
/// Needs    attention of the last query row of the prompt.
/// Shapes   mass and scores [kv_heads, slots].
/// Cost     slots * 4 bytes of workspace when a prompt ends; no state; no allocation. The other layers grow without limit.
/// Numbers  a layer is lazy when the mean over its query heads of the last row's mass on the protected slots is above the
///          threshold; masses in float32, their mean over heads in float64. A layer whose mass is NaN is not lazy. Generated
///          tokens stay.
/// Differs  kvpress drops one more of the newest tokens, for the one that is generated next.
/// Errors   invalid_argument unless 0 <= threshold <= 1, sinks >= 0 and recent >= 1.
struct SimLayerKV {
  static constexpr Descriptor about{"simlayerkv", Stage::evict, "arXiv:2410.13846"};
  static constexpr Inputs needs = Input::attention;

  double threshold = 0.9;
  index_t sinks = 4;
  index_t recent = 1024;

  constexpr auto pipeline() const {
    return Pipeline{AttentionMass<PerHead, Latest>{last_rows(1)},
                    NoPool{},
                    Both{Sinks{sinks}, Recent{recent}},
                    LayerBinary{threshold},
                    Fixed{.fill = true},
                    PrefillOnce{}};
  }
  Status validate(const CacheShape&) const {
    const bool good = threshold >= 0.0 && threshold <= 1.0 && sinks >= 0 && recent >= 1;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<SimLayerKV, Cpu>());

}  // namespace kvcondense::evict
