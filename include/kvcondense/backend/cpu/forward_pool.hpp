#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/forward_pool.hpp>

namespace kvcondense::prim {

template <>
struct ForwardPool<Cpu> {
  static Status add(Context<Cpu>& ctx, RaggedView<const float> x, index_t width, RaggedView<float> out) {
    if (width < 1 || width > most_forward_pool) return Status::invalid_argument;
    for (index_t h = 1; h < x.heads; ++h)
      if (x.length(h) != x.length(0)) return Status::not_supported;
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      // From the end, so that the window is the last `width` sums; NaN takes part as -inf.
      constexpr float none = -std::numeric_limits<float>::infinity();
      float window[most_forward_pool];
      std::fill_n(window, width, none);
      float* o = out.row(h);
      for (index_t j = x.length(0) - 1; j >= 0; --j) {
        float sum = 0.0f;
        for (index_t r = 0; r < x.heads; ++r) sum += x.row(r)[j];
        window[j % width] = std::isnan(sum) ? none : sum;
        o[j] += std::isnan(sum) ? sum : *std::max_element(window, window + width);
      }
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
