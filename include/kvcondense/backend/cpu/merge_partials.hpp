#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/merge_partials.hpp>

namespace kvcondense::prim {

template <>
struct MergePartials<Cpu> {
  static Status run(Context<Cpu>& ctx, std::span<const PartialAttention> parts, TensorView<float, 3> out,
                    TensorView<float, 2> lse = {}, LogBase base = LogBase::natural) {
    const index_t heads = out.extent[0], tokens = out.extent[1], dim = out.extent[2];
    const auto fits = [&](const auto& l) { return l.extent[0] == heads && l.extent[1] == tokens; };
    for (const PartialAttention& p : parts)
      if (!fits(p.out) || p.out.extent[2] != dim || !fits(p.lse)) return Status::shape_mismatch;
    if (lse.data != nullptr && !fits(lse)) return Status::shape_mismatch;
    ctx.parallel(heads, [&](index_t h, index_t) {
      for (index_t t = 0; t < tokens; ++t) merge_row(parts, out, lse, base, h, t);
    });
    return Status::ok;
  }

 private:
  static constexpr float none = -std::numeric_limits<float>::infinity();

  static float exponent(float x, LogBase base) { return base == LogBase::two ? std::exp2(x) : std::exp(x); }

  static void merge_row(std::span<const PartialAttention> parts, const TensorView<float, 3>& out, const TensorView<float, 2>& lse,
                        LogBase base, index_t h, index_t t) {
    float top = none, sum = 0.0f;
    bool nan = false;
    for (const PartialAttention& p : parts) {
      const float l = p.lse(h, t);
      nan = nan || l != l;
      top = l > top ? l : top;
    }
    const auto weight = [&](const PartialAttention& p) {
      const float l = p.lse(h, t);
      return nan ? std::numeric_limits<float>::quiet_NaN() : l == none ? 0.0f : exponent(l - top, base);
    };
    for (const PartialAttention& p : parts) sum += weight(p);
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    // The output may be a part's own: a tile of it is read from every part before it is written, and lse last.
    constexpr index_t tile = 64;
    for (index_t first = 0; first < out.extent[2]; first += tile) {
      const index_t n = std::min(tile, out.extent[2] - first);
      float x[tile] = {};
      for (const PartialAttention& p : parts) {
        const float w = weight(p);
        if (w == 0.0f) continue;
        for (index_t d = 0; d < n; ++d) x[d] += w * p.out(h, t, first + d);
      }
      for (index_t d = 0; d < n; ++d) out(h, t, first + d) = x[d] * inverse;
    }
    if (lse.data == nullptr) return;
    lse(h, t) = sum == 0.0f ? none : top + (base == LogBase::two ? std::log2(sum) : std::log(sum));
  }
};

}  // namespace kvcondense::prim
