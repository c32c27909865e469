#pragma once

#include <cstring>
#include <type_traits>

#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::cache {

/// out = row (head, token) of the caller's numbers, as floats.
template <class T>
void copy_row(const TensorView<const T, 3>& rows, index_t head, index_t token, float* out) {
  const index_t n = rows.extent[2];
  const T* x = &rows(head, token, 0);
  if (rows.stride[2] != 1) {
    for (index_t d = 0; d < n; ++d) out[d] = static_cast<float>(x[d * rows.stride[2]]);
  } else if constexpr (std::is_same_v<T, float>) {
    std::memcpy(out, x, static_cast<std::size_t>(n) * sizeof(float));
  } else {
    std::uint16_t bits[64];
    for (index_t d = 0; d < n; d += 64) {
      const index_t m = n - d < 64 ? n - d : 64;
      std::memcpy(bits, x + d, static_cast<std::size_t>(m) * sizeof *bits);
      prim::cpu::row_ops().widen(std::is_same_v<T, half> ? DType::f16 : DType::bf16, bits, m, out + d);
    }
  }
}

/// The row where it lies if it can be read there, else copied to `space`.
template <class T>
const float* row_of(const TensorView<const T, 3>& rows, index_t head, index_t token, float* space) {
  if constexpr (std::is_same_v<T, float>)
    if (rows.stride[2] == 1) return &rows(head, token, 0);
  copy_row(rows, head, token, space);
  return space;
}

}  // namespace kvcondense::cache
