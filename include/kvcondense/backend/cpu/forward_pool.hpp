#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/slot_numbers.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/forward_pool.hpp>

namespace kvcondense::prim {

template <>
struct ForwardPool<Cpu> {
  static Status add(Context<Cpu>&, RaggedView<const float> x, index_t width, RaggedView<float> out) {
    if (width < 1 || width > most_forward_pool) return Status::invalid_argument;
    for (index_t h = 1; h < x.heads; ++h)
      if (x.length(h) != x.length(0)) return Status::not_supported;
    // From the end, so that the window is the last `width` sums; NaN takes part as -inf.
    constexpr float none = -std::numeric_limits<float>::infinity();
    float window[most_forward_pool];
    std::fill_n(window, width, none);
    index_t oldest = 0;
    cpu::for_head_sums(x, [&](index_t first, index_t n, float* sums) {
      for (index_t j = n - 1; j >= 0; --j) {
        const bool bad = std::isnan(sums[j]);
        window[oldest] = bad ? none : sums[j];
        if (++oldest == width) oldest = 0;
        if (!bad) sums[j] = *std::max_element(window, window + width);
      }
      for (index_t h = 0; h < out.heads; ++h)
        for (index_t j = 0; j < n; ++j) out.row(h)[first + j] += sums[j];
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
