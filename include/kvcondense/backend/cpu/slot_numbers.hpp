#pragma once

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::prim {

template <>
struct SlotNumbers<Cpu> {
  static Status index(Context<Cpu>& ctx, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      float* o = out.row(h);
      for (index_t j = 0; j < out.length(h); ++j) o[j] = static_cast<float>(j);
    });
    return Status::ok;
  }

  static Status mix(Context<Cpu>& ctx, RaggedView<const float> x, float scale, float keep,
                    RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const float* from = x.row(h);
      combine(out.length(h), keep, out.row(h), [&](index_t j) { return scale * from[j]; });
    });
    return Status::ok;
  }

  static Status larger(Context<Cpu>& ctx, RaggedView<const float> x, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      float* o = out.row(h);
      for (index_t j = 0; j < out.length(h); ++j) o[j] = x.row(h)[j] > o[j] ? x.row(h)[j] : o[j];
    });
    return Status::ok;
  }

  static Status times(Context<Cpu>& ctx, RaggedView<const float> x, float add, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      float* o = out.row(h);
      for (index_t j = 0; j < out.length(h); ++j) o[j] = (o[j] + add) * x.row(h)[j];
    });
    return Status::ok;
  }

  static Status sum_heads(Context<Cpu>& ctx, RaggedView<const float> x, float scale, float keep,
                          RaggedView<float> out) {
    for (index_t h = 1; h < x.heads; ++h)
      if (x.length(h) != x.length(0)) return Status::not_supported;
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      combine(out.length(h), keep, out.row(h), [&](index_t j) {
        float sum = 0.0f;
        for (index_t other = 0; other < x.heads; ++other) sum += x.row(other)[j];
        return scale * sum;
      });
    });
    return Status::ok;
  }

 private:
  template <class F>
  static void combine(index_t n, float keep, float* out, F&& fresh) {
    if (keep == 0.0f) {
      for (index_t j = 0; j < n; ++j) out[j] = fresh(j);
    } else {
      for (index_t j = 0; j < n; ++j) out[j] = keep * out[j] + fresh(j);
    }
  }
};

}  // namespace kvcondense::prim
