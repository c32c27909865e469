#pragma once

#include <numeric>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/ends_sum.hpp>

namespace kvcondense::prim {

template <>
struct EndsSum<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<const float> x, const Ends* ends, float* sum) {
    ctx.parallel(x.heads, [&](index_t h, index_t) {
      const index_t n = x.length(h);
      const Ends e = ends[h].within(n);
      const float* row = x.row(h);
      sum[h] = std::accumulate(row + n - e.suffix, row + n, std::accumulate(row, row + e.prefix, 0.0f));
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
