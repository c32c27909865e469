#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/vertical_slash.hpp>

namespace kvcondense::prim {

template <>
struct VerticalSlash<Cpu> {
  static constexpr std::size_t workspace_bytes(index_t, index_t) { return 0; }

  static Status run(Context<Cpu>& ctx, TensorView<const float, 3> queries, TensorView<const float, 3> keys, float scale,
                    TensorView<float, 2> vertical, TensorView<float, 2> slash, Scratch = {}) {
    if (!vertical_slash_fits(queries, keys, vertical, slash)) return Status::shape_mismatch;
    const index_t m = queries.extent[1], n = keys.extent[1], dim = keys.extent[2], group = queries.extent[0] / keys.extent[0];
    ctx.parallel(queries.extent[0], [&](index_t h, index_t) {
      for (index_t j = 0; j < n; ++j) vertical(h, j) = slash(h, j) = 0.0f;
      for (index_t r = 0; r < m; ++r) {
        const index_t i = n - m + r;
        // Two passes over the dot products instead of room for them.
        const auto logit = [&](index_t j) {
          float dot = 0.0f;
          for (index_t d = 0; d < dim; ++d) dot += queries(h, r, d) * keys(h / group, j, d);
          return scale * dot;
        };
        float top = -std::numeric_limits<float>::infinity();
        double sum = 0.0;
        for (index_t j = 0; j <= i; ++j) {
          const float l = logit(j);
          if (l > top) sum *= static_cast<double>(std::exp(top - l)), top = l;
          sum += static_cast<double>(std::exp(l - top));
        }
        for (index_t j = 0; j <= i; ++j) {
          const auto w = static_cast<float>(static_cast<double>(std::exp(logit(j) - top)) / sum);
          vertical(h, j) += w, slash(h, i - j) += w;
        }
      }
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
