#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/draw_ranks.hpp>

namespace kvcondense::prim {

template <>
struct DrawRanks<Cpu> {
  static Status run(Context<Cpu>& ctx, float scale, std::uint64_t seed, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const std::uint64_t key = random_bits(seed, static_cast<std::uint64_t>(h));
      float* row = out.row(h);
      for (index_t j = 0; j < out.length(h); ++j) {
        const float u = random_uniform(key, static_cast<std::uint64_t>(j)) + 0x1p-25f;  // never 0 or 1
        row[j] = scale * row[j] - std::log(-std::log(u));
      }
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
