#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/token_surprise.hpp>

namespace kvcondense::prim {

template <>
struct TokenSurprise<Cpu> {
  static Status run(Context<Cpu>& ctx, TensorView<const float, 2> logits, std::span<const std::int32_t> tokens,
                    SurpriseOf which, std::span<float> out) {
    const auto n = static_cast<index_t>(tokens.size());
    const index_t words = logits.extent[1];
    if (logits.extent[0] != n || out.size() != tokens.size()) return Status::shape_mismatch;
    for (const std::int32_t t : tokens)
      if (t < 0 || t >= words) return Status::out_of_range;
    ctx.parallel(n, [&](index_t i, index_t) {
      float& o = out[static_cast<std::size_t>(i)];
      const index_t row = i - 1;
      if (row < 0) {
        o = std::numeric_limits<float>::quiet_NaN();
        return;
      }
      const std::int32_t asked = tokens[static_cast<std::size_t>(which == SurpriseOf::this_token ? i : row)];
      float top = -std::numeric_limits<float>::infinity(), sum = 0.0f;
      for (index_t w = 0; w < words; ++w) top = std::max(top, logits(row, w));
      for (index_t w = 0; w < words; ++w) sum += std::exp(logits(row, w) - top);
      o = std::log(sum) + top - logits(row, asked);
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
