#pragma once

#include <algorithm>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/head_mix.hpp>

namespace kvcondense::prim {

template <>
struct HeadMixing<Cpu> {
  static Status join(Context<Cpu>& ctx, TensorView<const float, 3> rows, const HeadMix& mix, TensorView<float, 3> out) {
    if (!fits(rows, out, out.extent[0] * mix.share, mix.dim, mix.columns)) return Status::shape_mismatch;
    each_row(ctx, out, [&](index_t g, index_t t, float* sum) {
      std::fill_n(sum, mix.columns, 0.0f);
      for (index_t i = 0; i < mix.share; ++i) add(rows, g * mix.share + i, t, mix.slice(g, i), mix, sum);
    });
    return Status::ok;
  }

  static Status map(Context<Cpu>& ctx, TensorView<const float, 3> rows, const HeadMix& mix, index_t groups, TensorView<float, 3> out) {
    if (!fits(rows, out, out.extent[0], mix.dim, mix.columns) || !members(out.extent[0], mix, groups)) return Status::shape_mismatch;
    each_row(ctx, out, [&](index_t h, index_t t, float* sum) {
      std::fill_n(sum, mix.columns, 0.0f);
      add(rows, h, t, slice_of(h, out.extent[0], mix, groups), mix, sum);
    });
    return Status::ok;
  }

  static Status back(Context<Cpu>& ctx, TensorView<const float, 3> rows, const HeadMix& mix, index_t groups, TensorView<float, 3> out) {
    if (!fits(rows, out, out.extent[0], mix.columns, mix.dim) || !members(out.extent[0], mix, groups)) return Status::shape_mismatch;
    each_row(ctx, out, [&](index_t h, index_t t, float* sum) {
      const float* slice = slice_of(h, out.extent[0], mix, groups);
      for (index_t d = 0; d < mix.dim; ++d) {
        sum[d] = 0.0f;
        for (index_t c = 0; c < mix.columns; ++c) sum[d] += rows(h, t, c) * slice[d * mix.stride + c];
      }
    });
    return Status::ok;
  }

 private:
  static bool fits(const TensorView<const float, 3>& rows, const TensorView<float, 3>& out, index_t heads, index_t from, index_t to) {
    return rows.extent[0] == heads && rows.extent[1] == out.extent[1] && rows.extent[2] == from && out.extent[2] == to && to <= max_head_dim;
  }
  static bool members(index_t heads, const HeadMix& mix, index_t groups) {
    return groups > 0 && heads % (groups * mix.share) == 0;
  }
  static const float* slice_of(index_t head, index_t heads, const HeadMix& mix, index_t groups) {
    const index_t member = head / (heads / (groups * mix.share));
    return mix.slice(member / mix.share, member % mix.share);
  }
  static void add(const TensorView<const float, 3>& rows, index_t h, index_t t, const float* slice, const HeadMix& mix, float* sum) {
    for (index_t d = 0; d < mix.dim; ++d) {
      const float x = rows(h, t, d), *b = slice + d * mix.stride;
      for (index_t c = 0; c < mix.columns; ++c) sum[c] += x * b[c];
    }
  }
  template <class F>
  static void each_row(Context<Cpu>& ctx, const TensorView<float, 3>& out, F&& f) {
    ctx.parallel(out.extent[0], [&](index_t h, index_t) {
      float sum[max_head_dim];
      for (index_t t = 0; t < out.extent[1]; ++t) {
        f(h, t, sum);
        for (index_t c = 0; c < out.extent[2]; ++c) out(h, t, c) = sum[c];
      }
    });
  }
};

}  // namespace kvcondense::prim
