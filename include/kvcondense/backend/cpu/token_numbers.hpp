#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/token_numbers.hpp>

namespace kvcondense::prim {

template <>
struct TokenNumbers<Cpu> {
  static Status write(Context<Cpu>& ctx, TensorView<const float, 2> numbers, float scale, index_t back, MissingNumber missing,
                      RaggedView<float> out) {
    if (numbers.extent[0] != 1 && numbers.extent[0] != out.heads) return Status::shape_mismatch;
    const index_t tokens = numbers.extent[1];
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const index_t row = numbers.extent[0] == 1 ? 0 : h;
      float stand_in = 0.0f;
      bool any = false;
      for (index_t t = 0; missing == MissingNumber::largest && t < tokens; ++t)
        if (const float x = numbers(row, t); !std::isnan(x)) stand_in = any ? std::max(stand_in, x) : x, any = true;
      const index_t first = out.length(h) - tokens - back;  // the slot of token 0
      for (index_t t = std::max<index_t>(0, -first); t < tokens; ++t) {
        const float x = std::isnan(numbers(row, t)) && missing == MissingNumber::largest ? stand_in : numbers(row, t);
        out.row(h)[first + t] = std::isnan(x) ? x : scale * x;  // devices have other bits for the product of a NaN
      }
    });
    return Status::ok;
  }

  static Status write(Context<Cpu>& ctx, std::span<const TokenClass> classes, RaggedView<float> out) {
    const auto tokens = static_cast<index_t>(classes.size());
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const index_t first = out.length(h) - tokens;
      for (index_t t = std::max<index_t>(0, -first); t < tokens; ++t)
        out.row(h)[first + t] = static_cast<float>(classes[static_cast<std::size_t>(t)]);
    });
    return Status::ok;
  }

  static Status extend(Context<Cpu>& ctx, index_t tokens, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const index_t n = out.length(h), first = n - tokens;
      if (first > 0) std::fill(out.row(h) + first, out.row(h) + n, out.row(h)[first - 1]);
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
