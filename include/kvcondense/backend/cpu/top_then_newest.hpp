#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/top_k.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/top_then_newest.hpp>

namespace kvcondense::prim {

template <>
struct TopThenNewest<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<const float> scores, index_t first, index_t best,
                    const index_t* total, RaggedView<std::int32_t> slots, index_t* count, index_t* nan = nullptr) {
    if (first < 0 || best < 0) return Status::invalid_argument;
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const index_t n = scores.length(h);
      const float* s = scores.row(h);
      std::int32_t* const begin = slots.row(h);
      count[h] = n;
      if (total[h] >= n) return std::iota(begin, begin + n, 0);

      const RowCutoff cut = cpu::row_cutoff(s, n, std::min(best, n));
      index_t ties = cut.ties, bad = 0;
      std::int32_t* out = begin;
      for (index_t i = 0; i < n; ++i) {
        const std::uint32_t key = rank_bits(s[i]);
        bad += key == 0;
        const bool wins = best > 0 && (key > cut.bits || (key == cut.bits && ties-- > 0));
        if (wins || i < first) *out++ = static_cast<std::int32_t>(i);
      }
      index_t kept = out - begin;
      if (kept < total[h]) {  // walk both lists from the back: a place that is missing is put in front
        index_t from = kept - 1, to = total[h] - 1;
        for (index_t i = n - 1; to > from; --i) {
          if (from >= 0 && begin[from] == i) --from;
          begin[to--] = static_cast<std::int32_t>(i);
        }
        kept = total[h];
      }
      count[h] = kept;
      if (nan != nullptr && bad > 0) std::atomic_ref<index_t>(*nan).fetch_add(bad);
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
