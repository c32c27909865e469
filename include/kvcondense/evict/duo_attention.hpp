#pragma once

#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/head_binary.hpp>
#include <kvcondense/evict/blocks/no_score.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps everything in the heads that retrieve from afar, the first and the newest tokens in all others.
///
/// Idea     few heads fetch what lies far back; the others look at the beginning and at what is near, and
///          lose nothing with a short cache. A gate per head, learned once, tells them apart.
/// Source   DuoAttention, arXiv:2410.10819; the slots of its cache, sinks + recent behind every step.
/// Needs    `gates`, a number per (layer, KV head): `kvcondense-eval identify-heads` makes them, and the
///          authors publish some for known models. Prefill in chunks, and what a prompt needs at its
///          peak falls too: each chunk sees sinks, recent and itself.
/// Shapes   gates [layers, kv_heads].
/// Cost     kv_heads numbers of workspace per step; which heads are full is worked out when the cache is
///          made. Full heads grow without limit.
/// Numbers  a head is full when its gate reaches the linearly interpolated quantile of all gates at
///          `sparsity`: of N heads N - ceil(sparsity * (N - 1)), none with sparsity 1, all with 0. A
///          product just above a whole number counts as it.
/// Differs  where gates are equal the authors add noise; here the earlier layer, then the smaller head is
///          full. Heads need no sorting in the weights: every head has its own length.
/// Errors   missing_input without gates; shape_mismatch when they are not of this model;
///          invalid_argument unless 0 <= sparsity <= 1, gates are finite, sinks >= 0 and recent >= 1.
struct DuoAttention {
  static constexpr Descriptor about{"duo_attention", Stage::evict, "arXiv:2410.10819"};
  static constexpr Inputs needs{};

  double sparsity = 0.5;
  index_t sinks = 64;
  index_t recent = 256;
  HeadTable gates{};  ///< borrowed

  const char* missing() const { return gates.empty() ? "gates" : nullptr; }

  /// How many of `heads` heads keep everything.
  index_t full_heads(index_t heads) const {
    if (sparsity <= 0.0) return heads;
    if (!(sparsity < 1.0)) return 0;
    return heads - static_cast<index_t>(std::ceil(sparsity * static_cast<double>(heads - 1) - 1e-6));
  }

  auto pipeline() const {
    return Pipeline{NoScore{},
                    NoPool{},
                    Both{Sinks{sinks}, Recent{recent}},
                    HeadBinary{TopHeads::of(gates, full_heads(gates.size()))},
                    Fixed{.fill = true},
                    EveryStep{}};
  }
  Status validate(const CacheShape& shape) const {
    const bool good = sparsity >= 0.0 && sparsity <= 1.0 && sinks >= 0 && recent >= 1;
    if (!good) return Status::invalid_argument;
    if (gates.empty()) return Status::missing_input;
    if (!gates.fits(shape)) return Status::shape_mismatch;
    return gates.finite() ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<DuoAttention, Cpu>());

}  // namespace kvcondense::evict
