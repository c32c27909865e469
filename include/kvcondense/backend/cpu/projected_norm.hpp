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
    const HeadColumns of{matrix, outputs, shape.q_heads * shape.values(), shape.values()};
    const index_t group = shape.group();
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      alignas(64) float block[tile * max_head_dim];
      const Ends ends = skip == nullptr ? Ends{} : skip[h].within(out.length(h));
      const index_t last = out.length(h) - ends.suffix;
      for (index_t at = ends.prefix; at < last; at += tile) {
        const index_t m = std::min(tile, last - at);
        double sum[tile] = {};
        rows.read(h, at, {block, m, of.dim});
        for (index_t g = 0; g < group; ++g) of.add(h * group + g, block, m, sum, [](float x) { return static_cast<double>(std::fabs(x)); });
        for (index_t j = 0; j < m; ++j) out.row(h)[at + j] = static_cast<float>(sum[j] / static_cast<double>(group));
      }
    });
    return Status::ok;
  }

  static Status weigh(Context<Cpu>& ctx, const SlotRows<Cpu>& rows, const CacheShape& shape, const float* matrix, index_t outputs,
                      RaggedView<const float> shares, RaggedView<float> out) {
    const HeadColumns of{matrix, outputs, shape.q_heads * shape.values(), shape.values()};
    const index_t group = shape.group();
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      alignas(64) float block[tile * max_head_dim];
      const index_t n = out.length(h);
      const float* const share = shares.data + shares.offset[h] * group;
      for (index_t at = 0; at < n; at += tile) {
        const index_t m = std::min(tile, n - at);
        float* const to = out.row(h) + at;
        const auto asked = [&](index_t j) { return share[at + j] > 0.0f; };
        bool any = false;
        for (index_t j = 0; j < m; ++j) to[j] = asked(j) ? std::numeric_limits<float>::min() : 0.0f, any = any || asked(j);
        if (!any) continue;
        rows.read(h, at, {block, m, of.dim});
        for (index_t g = 0; g < group; ++g) {
          double sum[tile] = {};
          of.add(h * group + g, block, m, sum, [](float x) { return static_cast<double>(x) * static_cast<double>(x); });
          for (index_t j = 0; j < m; ++j)
            if (asked(j)) to[j] = std::max(to[j], share[g * n + at + j] * static_cast<float>(std::sqrt(sum[j])));
        }
      }
    });
    return Status::ok;
  }

 private:
  struct HeadColumns {
    const float* matrix;
    index_t outputs, width, dim;

    /// sum[j] += the term of each output of row j times the columns of query head q.
    template <class Term>
    void add(index_t q, const float* block, index_t m, double* sum, Term term) const {
      float product[together * tile];
      for (index_t o = 0; o < outputs; o += together) {
        const index_t k = std::min(together, outputs - o);
        cpu::dot_rows(block, m, dim, {matrix + o * width + q * dim, k, width}, {product, k, tile});
        for (index_t i = 0; i < k; ++i)
          for (index_t j = 0; j < m; ++j) sum[j] += term(product[i * tile + j]);
      }
    }
  };
};

}  // namespace kvcondense::prim
