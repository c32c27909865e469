#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/above.hpp>
#include <kvcondense/evict/blocks/block_stride.hpp>
#include <kvcondense/evict/blocks/frozen.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the newest blocks of tokens and every so many of the older ones.
///
/// Idea     a fixed pattern costs nothing to choose, and a model trained with it finds the whole text in
///          its samples; heads that sample different blocks see all of it together.
/// Source   LongGen, arXiv:2410.01485, the block-sparse form of its outer layers; the rule for strides is
///          that of a co-author's public kernel. Around it: layer_pattern.
/// Needs    a model trained for it: without that, quality collapses.
/// Shapes   none.
/// Cost     4 bytes per slot for the mark, 4 bytes per slot of workspace per step; no allocation.
/// Numbers  a query in block a sees block b when a - b < local, or (b + 1 + h * step) is a multiple of
///          `every`; step is max(1, every / kv_heads) for KV head h, 0 without `shift`. A block leaves when
///          no later query can see it, so the cache holds exactly what the pattern allows.
/// Differs  the kernel shifts by query head; KV heads are shared by a group, so here they shift. The paper
///          leaves the sizes open: ours keep one token in 64, and 1024.
/// Errors   invalid_argument when block, every or local is not positive.
struct StridedBlocks {
  static constexpr Descriptor about{"strided_blocks", Stage::evict, "arXiv:2410.01485"};
  static constexpr bool trained = true;
  static constexpr Inputs needs{};

  index_t block = 64;
  index_t local = 16;
  index_t every = 64;
  bool shift = true;

  constexpr auto pipeline() const {
    return Pipeline{Frozen<StrideMark>{{block, every, shift}},
                    NoPool{},
                    LocalBlocks{block, local},
                    Above{above_zero},
                    TopK{},
                    EveryStep{}};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = block >= 1 && every >= 1 && local >= 1 && block <= most && local <= most && every <= most;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<StridedBlocks, Cpu>());

}  // namespace kvcondense::evict
