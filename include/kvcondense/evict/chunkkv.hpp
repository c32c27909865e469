#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/evict/blocks/chunk.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Condenses a prompt once, to the chunks of text that its last queries look at, whole.
///
/// Idea     single tokens shred phrases; a chunk of neighbours keeps its meaning together.
/// Source   ChunkKV, arXiv:2502.00299; one set of chunks for all heads of a layer, as in kvpress, and its reuse of one
///          layer's chunks in the next ones (2 layers have one choice in the paper).
/// Needs    attention of the last `window` rows of the step that ends the prompt: its last chunk should be as long; heads of one
///          length. With `reuse` only in every reuse-th layer.
/// Shapes   mass and scores [kv_heads, slots].
/// Cost     slots * 4 bytes of workspace when a prefill ends, 12 with `reuse`; no state; no allocation. Layers that reuse
///          measure no attention and score nothing: time that is saved, not memory.
/// Numbers  sum of the rows and of all query heads, then sum or mean over each chunk, float32. Chunks are
///          cut from the first slot; floor((tokens - window) / chunk) of them stay beside the window. A
///          last chunk that is not full counts as one, so up to 2 * chunk - 2 slots of the budget are
///          free; with `sum` it has fewer terms and mostly leaves. Ties keep the chunk in front. NaN is
///          left out of its chunk. Generated tokens stay. Of `reuse` neighbouring layers the first chooses, and the next
///          ones keep the tokens that it kept, whatever their budgets are, but a head whose own budget holds all of its
///          slots keeps them. 1: every layer chooses for itself.
/// Differs  the default is the mean (kvpress), not the sum, and no reuse.
/// Errors   invalid_argument when window, chunk or reuse is not positive, or tokens < window + chunk;
///          not_supported in a step whose heads hold different numbers of slots. Of a layer that reuses, when a prefill ends:
///          order_violation before the first layer has made that step, incompatible where a head lacks a token that the
///          first layer's kept (it was loaded from a cache that chose otherwise); it cannot choose for itself, for its
///          attention was not measured. make_cache: incompatible with budgets that scores decide, or tokens that fold among
///          those that stay.
struct ChunkKV {
  static constexpr Descriptor about{"chunkkv", Stage::evict, "arXiv:2502.00299"};
  static constexpr Inputs needs = Input::attention;

  index_t tokens = 1024;
  index_t window = 32;
  index_t chunk = 10;
  prim::ChunkReduce reduce = prim::ChunkReduce::mean;
  index_t reuse = 1;

  constexpr auto pipeline() const {
    return Pipeline{AttentionMass<AllHeads, Latest>{last_rows(window), Reduce::sum, {Reduce::sum}, {}},
                    Chunked{chunk, reduce},
                    Window{window},
                    Absolute{tokens},
                    ChunkTopK{chunk},
                    PrefillOnce{},
                    Residual::none,
                    LayerReuse{reuse}};
  }
  Status validate(const CacheShape&) const {
    const bool good = window >= 1 && chunk >= 1 && reuse >= 1 && tokens - window >= chunk;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<ChunkKV, Cpu>());

}  // namespace kvcondense::evict
