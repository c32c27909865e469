#pragma once

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/row_deviation.hpp>

namespace kvcondense::prim {

template <>
struct RowDeviation<Cpu> {
  static Status run(Context<Cpu>& ctx, TensorView<const float, 3> a, TensorView<const float, 3> b, float* out) {
    for (int i = 0; i < 3; ++i)
      if (a.extent[i] != b.extent[i]) return Status::shape_mismatch;
    ctx.parallel(a.extent[1], [&](index_t t, index_t) {
      float sum = 0.0f;
      for (index_t h = 0; h < a.extent[0]; ++h)
        for (index_t d = 0; d < a.extent[2]; ++d) {
          const float x = a(h, t, d) - b(h, t, d);
          sum += x * x;
        }
      out[t] += sum;
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
