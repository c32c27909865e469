#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/retaining_head.hpp>

namespace kvcondense::prim {

/// Tiles of tokens go to the threads; within one, a strip of hidden units at a time, so that a row of
/// W_in is read once for all tokens of the tile.
template <>
struct RetainingHead<Cpu> {
  static Status write(Context<Cpu>& ctx, const RetainingWeights& w, Activation act,
                      TensorView<const float, 3> queries, TensorView<const float, 3> keys,
                      TensorView<const float, 3> values, RaggedView<float> out) {
    const TensorView<const float, 3> parts[] = {queries, keys, values};
    index_t inputs = 0;
    for (const auto& p : parts) inputs += p.extent[0] * p.extent[2];
    const index_t tokens = queries.extent[1];
    if (inputs != w.inputs || keys.extent[0] != out.heads || keys.extent[1] != tokens || values.extent[1] != tokens)
      return Status::shape_mismatch;
    ctx.parallel((tokens + tile - 1) / tile, [&](index_t task, index_t) {
      const index_t first = task * tile, count = std::min(tile, tokens - first);
      const auto slot = [&](index_t h, index_t t) -> float* {  // null: the token is not stored here
        const index_t j = out.length(h) - tokens + first + t;
        return j < 0 ? nullptr : out.row(h) + j;
      };
      for (index_t h = 0; h < out.heads; ++h)
        for (index_t t = 0; t < count; ++t)
          if (float* o = slot(h, t)) *o = 0.0f;
      for (index_t u = 0; u < w.hidden; u += strip) {
        const index_t units = std::min(strip, w.hidden - u);
        float sum[tile][strip] = {};
        const float* row = w.weights_in + u;
        for (const auto& p : parts)
          for (index_t head = 0; head < p.extent[0]; ++head)
            for (index_t from = 0, n = 0; from < p.extent[2]; from += n) {
              const float* rows[together];
              n = std::min(together, p.extent[2] - from);
              for (index_t i = 0; i < n; ++i, row += w.hidden) rows[i] = row;
              for (index_t t = 0; t < count; ++t) {
                float x[together];
                for (index_t i = 0; i < n; ++i) x[i] = p(head, first + t, from + i);
                cpu::number_ops().add_scaled(rows, x, n, units, sum[t]);
              }
            }
        for (index_t t = 0; t < count; ++t)
          for (index_t i = 0; i < units; ++i) {
            const float a = activate(sum[t][i], act);
            for (index_t h = 0; h < out.heads; ++h)
              if (float* o = slot(h, t)) *o += a * w.weights_out[(u + i) * out.heads + h];
          }
      }
    });
    return Status::ok;
  }

 private:
  static constexpr index_t tile = 8;
  static constexpr index_t strip = 128;
  static constexpr index_t together = 64;  ///< inputs, whose rows of a strip stay near while all tokens of a tile are read

  static float activate(float x, Activation act) {
    switch (act) {
      case Activation::silu: return x / (1.0f + std::exp(-x));
      case Activation::gelu_tanh: return 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
      case Activation::relu: return x > 0.0f ? x : 0.0f;
    }
    return x;
  }
};

}  // namespace kvcondense::prim
