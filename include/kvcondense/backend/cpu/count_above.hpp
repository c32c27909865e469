#pragma once

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/count_above.hpp>

namespace kvcondense::prim {

template <>
struct CountAbove<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<const float> scores, const Ends* skip, float least, index_t* count) {
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const index_t n = scores.length(h);
      const Ends ends = skip == nullptr ? Ends{} : skip[h].within(n);
      count[h] = cpu::number_ops().count_from(scores.row(h) + ends.prefix, n - ends.size(), least);
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
