#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/column_pool.hpp>

namespace kvcondense::prim {

template <>
struct ColumnPool<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<const float> in, const Ends* skip, Pool pool,
                    index_t kernel, RaggedView<float> out) {
    if (kernel < 1 || kernel % 2 == 0) return Status::invalid_argument;
    const index_t half = kernel / 2;
    ctx.parallel(in.heads, [&](index_t h, index_t) {
      const Ends ends = skip == nullptr ? Ends{} : skip[h].within(in.length(h));
      const index_t n = in.length(h) - ends.size();
      const float* x = in.row(h) + ends.prefix;
      float* y = out.row(h) + ends.prefix;
      for (index_t j = 0; j < n; ++j) {
        const index_t first = std::max<index_t>(0, j - half), last = std::min(n, j + half + 1);
        if (std::isnan(x[j])) y[j] = x[j];
        else if (pool == Pool::maximum) y[j] = largest(x, first, last);
        else y[j] = average(x, first, last, pool == Pool::average ? kernel : 0);
      }
    });
    return Status::ok;
  }

 private:
  static float largest(const float* x, index_t first, index_t last) {
    float most = -std::numeric_limits<float>::infinity();
    for (index_t i = first; i < last; ++i) most = x[i] > most ? x[i] : most;
    return most;
  }

  static float average(const float* x, index_t first, index_t last, index_t divisor) {
    float sum = 0.0f;
    index_t taps = 0;
    for (index_t i = first; i < last; ++i) {
      if (std::isnan(x[i])) continue;
      sum += x[i];
      ++taps;
    }
    return sum / static_cast<float>(divisor > 0 ? divisor : taps);
  }
};

}  // namespace kvcondense::prim
