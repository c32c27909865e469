#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/slot_exposure.hpp>

namespace kvcondense::prim {

template <>
struct SlotExposure<Cpu> {
  static Status add(Context<Cpu>& ctx, index_t rows, RaggedView<float> exposure) {
    ctx.parallel(exposure.heads, [&](index_t h, index_t) {
      const index_t n = exposure.length(h), all = std::max<index_t>(n - rows, 0);  // seen by all rows
      float* e = exposure.row(h);
      for (index_t j = 0; j < all; ++j) e[j] += static_cast<float>(rows);
      for (index_t j = all; j < n; ++j) e[j] += static_cast<float>(std::min(rows, n - j));
    });
    return Status::ok;
  }

  static Status open_logs(Context<Cpu>& ctx, RaggedView<const float> exposure, RaggedView<float> logs) {
    ctx.parallel(logs.heads, [&](index_t h, index_t) {
      for (index_t j = 0; j < logs.length(h); ++j)
        if (!(exposure.row(h)[j] > 0.0f)) logs.row(h)[j] = -std::numeric_limits<float>::infinity();
    });
    return Status::ok;
  }

  static Status decayed_mean(Context<Cpu>& ctx, RaggedView<const float> logs, RaggedView<const float> exposure, float decay,
                             RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const float *l = logs.row(h), *e = exposure.row(h);
      float* o = out.row(h);
      for (index_t j = 0; j < out.length(h); ++j)
        o[j] = e[j] > 0.0f ? l[j] - std::log(1.0f - std::pow(decay, e[j])) : -std::numeric_limits<float>::infinity();
    });
    return Status::ok;
  }

  static Status mean(Context<Cpu>& ctx, RaggedView<const float> sum, RaggedView<const float> exposure,
                     RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const float *s = sum.row(h), *e = exposure.row(h);
      float* o = out.row(h);
      for (index_t j = 0; j < out.length(h); ++j) o[j] = e[j] > 0.0f ? s[j] / e[j] : 0.0f;
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
