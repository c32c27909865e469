#pragma once

#include <algorithm>

#include <kvcondense/backend/cpu/group_quant_rows.hpp>
#include <kvcondense/prim/group_quant.hpp>

namespace kvcondense::prim::cpu {

/// Copies a row that coding can use: NaN as 0, infinities and magnitudes beyond `largest_coded` with the largest magnitude
/// of the others. Returns how many those were.
inline index_t clean_row(const float* in, index_t dim, float* KVCONDENSE_RESTRICT out) {
  index_t repaired = 0;
  const GroupRange range = range_of(in, dim, repaired);
  const float most = range.lo <= range.hi ? std::max(range.hi, -range.lo) : 0.0f;
  for (index_t c = 0; c < dim; ++c) out[c] = limit_to(without_nan(in[c]), most);
  return repaired;
}

}  // namespace kvcondense::prim::cpu
