#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/evict/blocks/chunk.hpp>
#include <kvcondense/evict/blocks/paged.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Drops whole pages that drew least attention, never the first tokens nor the newest.
///
/// Idea     memory comes back when a page empties: choose pages, not tokens, and every eviction frees one.
/// Source   OpenVINO GenAI, cache eviction of its continuous batching; a descendant of H2O.
/// Needs    attention of the last `window` query rows of every step, of every row with window = 0; heads
///          of one length.
/// Shapes   mass and scores [kv_heads, slots]; all heads of a layer hold the same tokens.
/// Cost     8 bytes per slot for the sum and the mark of its rows, of which a step touches those of one head; slots * 4 bytes
///          of workspace in steps that evict, once in `page` tokens; no allocation.
/// Numbers  the sum of all query heads, spread to the width - 1 tokens in front (maximum), added up over
///          steps; a page's score is the sum of its tokens, with `per_row` each divided by the rows that saw
///          it; float32. Chunks of a prompt each bring their last `window` rows. When start + evictable +
///          recent tokens and a full page are there, the lowest pages leave until evictable tokens are left
///          between start and recent; the page that is not full stays. Ties keep the page in front. NaN is
///          left out of its page.
/// Differs  sums are float32, the original's float64; on ties it drops the page in front. Its adaptive mode, which fills what
///          attention leaves of the budget with pages unlike each other, is not here.
/// Errors   invalid_argument unless page >= 1, start, evictable and recent are multiples of it (evictable
///          not 0), window >= 0 and 1 <= width <= 64; not_supported in a step whose heads hold different
///          numbers of slots.
struct PagedH2O {
  static constexpr Descriptor about{"paged_h2o", Stage::evict, "OpenVINO GenAI"};
  static constexpr Inputs needs = Input::attention;

  index_t page = 32;
  index_t start = 32;
  index_t evictable = 512;
  index_t recent = 128;
  index_t window = 8;
  index_t width = 7;
  bool per_row = true;

  constexpr auto pipeline() const {
    const index_t most = start + evictable + recent;
    return Pipeline{ForwardMass{window == 0 ? all_rows() : last_rows(window), width, per_row},
                    Chunked{page, prim::ChunkReduce::sum},
                    PageEnds{start, recent, page},
                    PagedTokens{most, page},
                    ChunkTopK{page},
                    Slack{page}};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool sizes = page >= 1 && page <= most && start >= 0 && start <= most && evictable >= page &&
                       evictable <= most && recent >= 0 && recent <= most;
    if (!sizes || window < 0 || width < 1 || width > prim::most_forward_pool) return Status::invalid_argument;
    const bool whole = start % page == 0 && evictable % page == 0 && recent % page == 0;
    return whole ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<PagedH2O, Cpu>());

}  // namespace kvcondense::evict
