#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/projected_norm.hpp>

namespace kvcondense::prim {

template <>
struct ProjectedNorm<Cpu> {
  static constexpr index_t tile = 64;      ///< slots that one read of the matrix serves
  static constexpr index_t together = 16;  ///< outputs of one product, so that its rows stay in the cache

  static Status run(Context<Cpu>& ctx, const SlotRows<Cpu>& rows, const Ends* skip, const CacheShape& shape,
                    const float* matrix, index_t outputs, RaggedView<float> out) {
    const index_t dim = shape.values(), width = shape.q_heads * dim, group = shape.group();
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      alignas(64) float block[tile * max_head_dim];
      float product[together * tile];
      const Ends ends = skip == nullptr ? Ends{} : skip[h].within(out.length(h));
      const index_t last = out.length(h) - ends.suffix;
      for (index_t at = ends.prefix; at < last; at += tile) {
        const index_t m = std::min(tile, last - at);
        double sum[tile] = {};
        rows.read(h, at, {block, m, dim});
        for (index_t g = 0; g < group; ++g)
          for (index_t o = 0; o < outputs; o += together) {
            const index_t k = std::min(together, outputs - o);
            cpu::dot_rows(block, m, dim, {matrix + o * width + (h * group + g) * dim, k, width}, {product, k, tile});
            for (index_t i = 0; i < k; ++i)
              for (index_t j = 0; j < m; ++j) sum[j] += static_cast<double>(std::fabs(product[i * tile + j]));
          }
        for (index_t j = 0; j < m; ++j) out.row(h)[at + j] = static_cast<float>(sum[j] / static_cast<double>(group));
      }
    });
    return Status::ok;
  }

  static Status weigh(Context<Cpu>& ctx, const SlotRows<Cpu>& rows, const CacheShape& shape, const float* matrix, index_t outputs,
                      RaggedView<const float> shares, RaggedView<float> out) {
    const index_t dim = shape.values(), width = shape.q_heads * dim, group = shape.group();
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      alignas(64) float block[tile * max_head_dim];
      float product[together * tile];
      const index_t n = out.length(h);
      const float* const share = shares.data + shares.offset[h] * group;
      for (index_t at = 0; at < n; at += tile) {
        const index_t m = std::min(tile, n - at);
        float* const to = out.row(h) + at;
        const auto asked = [&](index_t j) { return share[at + j] > 0.0f; };
        bool any = false;
        for (index_t j = 0; j < m; ++j) to[j] = asked(j) ? std::numeric_limits<float>::min() : 0.0f, any = any || asked(j);
        if (!any) continue;
        rows.read(h, at, {block, m, dim});
        for (index_t g = 0; g < group; ++g) {
          double sum[tile] = {};
          for (index_t o = 0; o < outputs; o += together) {
            const index_t k = std::min(together, outputs - o);
            cpu::dot_rows(block, m, dim, {matrix + o * width + (h * group + g) * dim, k, width}, {product, k, tile});
            for (index_t i = 0; i < k; ++i)
              for (index_t j = 0; j < m; ++j) sum[j] += static_cast<double>(product[i * tile + j]) * static_cast<double>(product[i * tile + j]);
          }
          for (index_t j = 0; j < m; ++j)
            if (asked(j)) to[j] = std::max(to[j], share[g * n + at + j] * static_cast<float>(std::sqrt(sum[j])));
        }
      }
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
