#pragma once

#include <cstdint>
#include <numeric>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/keep_tokens.hpp>

namespace kvcondense::prim {

template <>
struct KeepTokens<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<const std::int32_t> tokens, RaggedView<const std::int32_t> wanted,
                    const index_t* total, RaggedView<std::int32_t> slots, index_t* count) {
    ctx.parallel(tokens.heads, [&](index_t h, index_t) {
      const index_t n = tokens.length(h), m = wanted.length(h);
      std::int32_t* const out = slots.row(h);
      if (total[h] >= n) return std::iota(out, out + n, 0), void(count[h] = n);
      const std::int32_t *have = tokens.row(h), *want = wanted.row(h);
      index_t kept = 0;
      for (index_t i = 0, j = 0; i < n && j < m; ++i) {
        while (j < m && want[j] < have[i]) ++j;
        if (j < m && want[j] == have[i]) out[kept++] = static_cast<std::int32_t>(i);
      }
      count[h] = kept;
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
