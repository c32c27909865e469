#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/chunk_pool.hpp>

namespace kvcondense::prim {

template <>
struct ChunkPool<Cpu> {
  static Status run(Context<Cpu>& ctx, const Ends* skip, ChunkReduce reduce, index_t chunk,
                    RaggedView<float> scores) {
    if (chunk < 1) return Status::invalid_argument;
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const index_t n = scores.length(h);
      const Ends ends = skip == nullptr ? Ends{} : skip[h].within(n);
      float* s = scores.row(h);
      const index_t last = n - ends.suffix;
      for (index_t first = ends.prefix; first < last; first += chunk)
        pool(s + first, std::min(chunk, last - first), reduce);
    });
    return Status::ok;
  }

 private:
  static void pool(float* s, index_t n, ChunkReduce reduce) {
    float sum = 0.0f;
    index_t terms = 0;
    for (index_t j = 0; j < n; ++j) {
      if (std::isnan(s[j])) continue;
      sum += s[j];
      ++terms;
    }
    if (reduce == ChunkReduce::mean && terms > 0) sum /= static_cast<float>(terms);
    for (index_t j = 0; j < n; ++j)
      if (!std::isnan(s[j])) s[j] = sum;
  }
};

}  // namespace kvcondense::prim
