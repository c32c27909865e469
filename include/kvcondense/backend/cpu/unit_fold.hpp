#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/unit_fold.hpp>

namespace kvcondense::prim {

template <>
struct UnitFold<Cpu> {
  static void largest(RowBlock<const float> rows, index_t dim, float* KVCONDENSE_RESTRICT out) {
    for (index_t i = 0; i < rows.rows; ++i) {
      const float* KVCONDENSE_RESTRICT x = rows.data + i * rows.step;
      for (index_t d = 0; d < dim; ++d) out[d] = x[d] > out[d] ? x[d] : out[d];
    }
  }
  static void smallest(RowBlock<const float> rows, index_t dim, float* KVCONDENSE_RESTRICT out) {
    for (index_t i = 0; i < rows.rows; ++i) {
      const float* KVCONDENSE_RESTRICT x = rows.data + i * rows.step;
      for (index_t d = 0; d < dim; ++d) out[d] = x[d] < out[d] ? x[d] : out[d];
    }
  }
  static void sum(RowBlock<const float> rows, index_t dim, float* KVCONDENSE_RESTRICT out) {
    for (index_t i = 0; i < rows.rows; ++i) {
      const float* KVCONDENSE_RESTRICT x = rows.data + i * rows.step;
      for (index_t d = 0; d < dim; ++d) out[d] += x[d];
    }
  }
};

}  // namespace kvcondense::prim
