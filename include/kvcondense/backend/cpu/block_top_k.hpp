#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/open_blocks.hpp>
#include <kvcondense/backend/cpu/top_k.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/block_top_k.hpp>

namespace kvcondense::prim {

template <>
struct BlockTopK<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<const float> scores, const Ends* always, index_t block,
                    const index_t* total, RaggedView<std::int32_t> slots, index_t* count,
                    index_t* nan = nullptr) {
    if (block < 1) return Status::invalid_argument;
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const index_t n = scores.length(h);
      const Ends ends = always == nullptr ? Ends{} : always[h].within(n);
      const float* s = scores.row(h);
      std::int32_t* const begin = slots.row(h);
      count[h] = n;
      if (total[h] >= n) return std::iota(begin, begin + n, 0);

      const cpu::Span run = cpu::competing(s, n, ends);
      const index_t places = std::clamp<index_t>(total[h] - (n - run.size()), 0, run.size());
      const BlockShares shares{run.size(), block, places};
      std::iota(begin, begin + run.first, 0);
      std::int32_t* out = begin + run.first;
      index_t bad = 0;
      for (index_t b = 0; b * block < run.size(); ++b) {
        const index_t first = run.first + b * block, last = std::min(first + block, run.last);
        const RowCutoff cut = cpu::row_cutoff(s + first, last - first, shares.of(b));
        index_t ties = cut.ties;
        for (index_t i = first; i < last; ++i) {
          const std::uint32_t key = rank_bits(s[i]);
          bad += key == 0;
          if (key > cut.bits || (key == cut.bits && ties-- > 0)) *out++ = static_cast<std::int32_t>(i);
        }
      }
      std::iota(out, out + (n - run.last), static_cast<std::int32_t>(run.last));
      count[h] = out - begin + n - run.last;
      if (nan != nullptr && bad > 0) std::atomic_ref<index_t>(*nan).fetch_add(bad);
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
