#pragma once

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/query_moments.hpp>

namespace kvcondense::prim {

template <>
struct QueryMoments<Cpu> {
  static Status add(Context<Cpu>& ctx, TensorView<const float, 3> queries, index_t counted, TensorView<float, 2> mean,
                    TensorView<float, 3> covariance) {
    const index_t heads = queries.extent[0], tokens = queries.extent[1], dim = queries.extent[2];
    if (counted < 0) return Status::invalid_argument;
    if (mean.extent[0] != heads || mean.extent[1] != dim || covariance.extent[0] != heads ||
        covariance.extent[1] != dim || covariance.extent[2] != dim || dim > max_head_dim)
      return Status::shape_mismatch;
    ctx.parallel(heads, [&](index_t h, index_t) {
      float before[max_head_dim];
      for (index_t t = 0; t < tokens; ++t) {
        const index_t n = counted + t;
        const float part = 1.0f / static_cast<float>(n + 1);
        for (index_t d = 0; d < dim; ++d) {
          float& m = mean(h, d);
          if (n == 0) m = 0.0f;
          before[d] = queries(h, t, d) - m;
          m += before[d] * part;
        }
        for (index_t a = 0; a < dim; ++a) {
          const float after = queries(h, t, a) - mean(h, a);
          for (index_t b = 0; b < dim; ++b) {
            float& c = covariance(h, a, b);
            c = n == 0 ? 0.0f : c + (after * before[b] - c) * part;
          }
        }
      }
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
