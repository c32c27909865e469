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
#include <kvcondense/prim/chunk_top_k.hpp>

namespace kvcondense::prim {

template <>
struct ChunkTopK<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<const float> scores, const Ends* always, index_t chunk,
                    const index_t* total, RaggedView<std::int32_t> slots, index_t* count,
                    index_t* nan = nullptr) {
    if (chunk < 1) return Status::invalid_argument;
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const index_t n = scores.length(h);
      const Ends ends = always == nullptr ? Ends{} : always[h].within(n);
      std::int32_t* const begin = slots.row(h);
      count[h] = n;
      if (total[h] >= n) return std::iota(begin, begin + n, 0);

      const float* s = scores.row(h);
      const index_t last = n - ends.suffix;
      const index_t chunks = std::max<index_t>(0, total[h] - ends.size()) / chunk;
      index_t bad = 0;
      const auto each = [&](auto&& use) {  // the chunks in order: their key and where they lie
        for (index_t first = ends.prefix; first < last; first += chunk) {
          const index_t end = std::min(last, first + chunk);
          std::uint32_t best = 0;
          for (index_t i = first; i < end; ++i) best = std::max(best, rank_bits(s[i]));
          use(best, first, end);
        }
      };
      RowCutoff cut;
      if (chunks > 0)
        cut = find_cutoff(chunks, [&](auto&& use) {
          each([&](std::uint32_t key, index_t, index_t) { use(key); });
        });
      std::iota(begin, begin + ends.prefix, 0);
      std::int32_t* out = begin + ends.prefix;
      each([&](std::uint32_t key, index_t first, index_t end) {
        for (index_t i = first; i < end; ++i) bad += rank_bits(s[i]) == 0;
        if (key > cut.bits || (key == cut.bits && cut.ties-- > 0)) {
          std::iota(out, out + (end - first), static_cast<std::int32_t>(first));
          out += end - first;
        }
      });
      std::iota(out, out + ends.suffix, static_cast<std::int32_t>(last));
      count[h] = out - begin + ends.suffix;
      if (nan != nullptr && bad > 0) std::atomic_ref<index_t>(*nan).fetch_add(bad);
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
