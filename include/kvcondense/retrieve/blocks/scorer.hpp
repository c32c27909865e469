#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/softmax_rows.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Scorer: scores as the index gives them.
struct PlainScore {
  template <Backend B>
  Status run(Context<B>&, const ReadView<B>&, RaggedView<float>) const {
    return Status::ok;
  }
};

/// Scorer: the softmax over a row's candidates, of scores times the softmax scale.
struct SoftmaxScore {
  float scale = 0.0f;  ///< 0: the softmax scale

  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>& view, RaggedView<float> scores) const {
    return prim::SoftmaxRows<B>::run(ctx, scale > 0.0f ? scale : view.shape.softmax_scale, scores);
  }
};

}  // namespace kvcondense::retrieve
