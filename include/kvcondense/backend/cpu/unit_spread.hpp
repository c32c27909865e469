#pragma once

#include <cmath>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/prim/unit_spread.hpp>

namespace kvcondense::prim {

template <>
struct UnitSpread<Cpu> {
  static float smallest_cosine(RowBlock<const float> rows, index_t dim, const float* direction, float least) {
    const float length = cpu::dot(direction, direction, dim);
    for (index_t i = 0; i < rows.rows; ++i) {
      const float* x = rows.data + i * rows.step;
      const float norm = std::sqrt(cpu::dot(x, x, dim) * length);
      const float c = norm > 0.0f ? cpu::dot(x, direction, dim) / norm : 0.0f;
      if (c < least) least = c;
    }
    return least;
  }
};

}  // namespace kvcondense::prim
