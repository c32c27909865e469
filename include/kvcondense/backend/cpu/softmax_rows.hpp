#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/softmax_rows.hpp>

namespace kvcondense::prim {

template <>
struct SoftmaxRows<Cpu> {
  static Status run(Context<Cpu>& ctx, float scale, RaggedView<float> rows) {
    ctx.parallel(rows.heads, [&](index_t r, index_t) {
      float* x = rows.row(r);
      const index_t n = rows.length(r);
      float top = -std::numeric_limits<float>::infinity();
      for (index_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
      if (top == -std::numeric_limits<float>::infinity()) {
        for (index_t i = 0; i < n; ++i) x[i] = x[i] == x[i] ? 0.0f : x[i];
        return;
      }
      double sum = 0.0;
      for (index_t i = 0; i < n; ++i) {
        x[i] = x[i] == top ? 1.0f : std::exp(scale * (x[i] - top));
        if (x[i] == x[i]) sum += static_cast<double>(x[i]);
      }
      const float inv = static_cast<float>(1.0 / sum);
      for (index_t i = 0; i < n; ++i) x[i] *= inv;
    });
    return Status::ok;
  }
};

template <>
struct FoldRows<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<const float> rows, index_t group, RowFold how, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t r, index_t) {
      float* to = out.row(r);
      const index_t n = out.length(r);
      std::copy_n(rows.row(r * group), n, to);
      for (index_t g = 1; g < group; ++g) {
        const float* x = rows.row(r * group + g);
        if (how == RowFold::largest)
          for (index_t i = 0; i < n; ++i) to[i] = x[i] > to[i] || to[i] != to[i] ? x[i] : to[i];
        else
          for (index_t i = 0; i < n; ++i) to[i] += x[i];
      }
      if (how == RowFold::mean && group > 1)
        for (index_t i = 0; i < n; ++i) to[i] /= static_cast<float>(group);
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
