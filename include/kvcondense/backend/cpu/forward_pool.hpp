#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/slot_numbers.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/forward_pool.hpp>

namespace kvcondense::prim {

template <>
struct ForwardPool<Cpu> {
  static Status add(Context<Cpu>&, RaggedView<const float> x, index_t width, RaggedView<float> out) {
    if (width < 1 || width > most_forward_pool) return Status::invalid_argument;
    for (index_t h = 1; h < x.heads; ++h)
      if (x.length(h) != x.length(0)) return Status::not_supported;
    // From the end: behind the sums of a block are those of the places behind it. NaN takes part as -inf.
    constexpr float none = -std::numeric_limits<float>::infinity();
    constexpr index_t block = cpu::most_head_sums;
    float taps[block + most_forward_pool], behind[most_forward_pool];
    std::fill_n(behind, width, none);
    cpu::for_head_sums(x, [&](index_t first, index_t n, const float* sums) {
      const cpu::NumberOps& ops = cpu::number_ops();
      std::fill_n(taps, n, none);
      ops.larger(sums, taps, n, taps);
      std::copy_n(behind, width, taps + n);
      std::copy_n(taps, width, behind);
      // Each tap is the largest of `reach` places, then of twice as many, until the rest overlaps.
      index_t reach = 1, there = n + width - 1;
      const auto join = [&](index_t step) {
        there -= step, reach += step;
        ops.larger(taps + step, taps, there, taps);
      };
      while (2 * reach <= width) join(reach);
      if (reach < width) join(width - reach);
      if (ops.count_from(sums, n, none) < n)
        for (index_t j = 0; j < n; ++j) taps[j] = std::isnan(sums[j]) ? sums[j] : taps[j];
      for (index_t h = 0; h < out.heads; ++h) ops.mix(taps, n, 1.0f, 1.0f, out.row(h) + first);
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
