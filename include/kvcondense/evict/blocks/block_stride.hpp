#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/block_stride.hpp>

namespace kvcondense::evict {

/// 1 for tokens of every `every`-th block, 0 for the others. With `shift` heads start at different blocks.
struct StrideMark {
  index_t block = 64;
  index_t every = 64;
  bool shift = true;

  constexpr Inputs inputs() const { return {}; }
  constexpr Touches touches() const { return Touches::newest; }
  constexpr bool one_set() const { return !shift; }

  template <Backend B>
  Status write(Context<B>& ctx, const StepView<B>& view, RaggedView<float> lane) const {
    const index_t step = shift ? std::max<index_t>(1, every / view.heads()) : 0;
    return prim::BlockStride<B>::mark(ctx, {block, every, step}, view.seen - view.appended, view.appended, lane);
  }
};

/// Protect: the newest tokens, from the beginning of a block: what a query of the next token finds in
/// its own block and the `blocks` - 1 before it.
struct LocalBlocks {
  index_t block = 64;
  index_t blocks = 16;

  constexpr index_t most() const { return block * blocks - 1; }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t) const {
    return {0, view.seen % block + (blocks - 1) * block};
  }
};

}  // namespace kvcondense::evict
