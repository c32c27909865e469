#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/top_k.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/lift_top.hpp>

namespace kvcondense::prim {

template <>
struct LiftTop<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<const float> scores, RaggedView<const float> weights, const Ends* skip,
                    const index_t* first, float bias, RaggedView<float> out) {
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const Ends ends = skip == nullptr ? Ends{} : skip[h].within(scores.length(h));
      const index_t begin = ends.prefix, end = scores.length(h) - ends.suffix;
      const float *s = scores.row(h), *w = weights.row(h);
      const RowCutoff cut = cpu::row_cutoff(s + begin, end - begin, std::clamp<index_t>(first[h], 0, end - begin));
      index_t ties = cut.ties;
      for (index_t j = begin; j < end; ++j) {
        const std::uint32_t key = rank_bits(s[j]);
        const bool best = key > cut.bits || (key == cut.bits && ties-- > 0);
        out.row(h)[j] = best && key != 0 ? std::numeric_limits<float>::infinity() : (s[j] + bias) * w[j];
      }
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
