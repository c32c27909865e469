#pragma once

#include <algorithm>
#include <cstring>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// Plain numbers in token-major rows. Non-finite numbers are stored as they are: an exact part
/// repairs nothing.
template <>
struct PageCodec<Cpu, ExactRows> {
  static index_t encode(const ExactRows& codec, PageSpan page, index_t first, index_t count,
                        RowBlock<const float> rows) {
    for (index_t i = 0; i < count; ++i) {
      const float* x = rows.data + i * rows.step;
      std::byte* row = at(codec, page, first + i);
      if (codec.dtype == DType::f32) {
        std::memcpy(row, x, static_cast<std::size_t>(page.dim) * sizeof(float));
        continue;
      }
      cpu::row_ops().narrow(codec.dtype, x, page.dim, reinterpret_cast<std::uint16_t*>(row));
    }
    return 0;
  }

  static void decode(const ExactRows& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    const bool close = rows.step == page.dim;  // rows lie one behind the other there as they do here
    const index_t n = close ? count * page.dim : page.dim;
    for (index_t i = 0; i < count; i += close ? count : 1) {
      const std::byte* row = at(codec, page, first + i);
      float* x = rows.data + i * rows.step;
      if (codec.dtype == DType::f32) std::memcpy(x, row, static_cast<std::size_t>(n) * sizeof(float));
      else cpu::row_ops().widen(codec.dtype, reinterpret_cast<const std::uint16_t*>(row), n, x);
    }
  }

  static void move(const ExactRows& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot, index_t count = 1) {
    std::memmove(at(codec, to, to_slot), at(codec, from, from_slot), static_cast<std::size_t>(count * to.dim) * size_of(codec.dtype));
  }

  static void scores(const ExactRows& codec, const PageSpan& page, index_t first, index_t count,
                     const RowBlock<const float>& queries, const RowBlock<float>& out) {
    cpu::row_ops().dot_rows(codec.dtype, at(codec, page, first), count, page.dim, queries, out, ahead(codec, page, first));
  }

  static void accumulate(const ExactRows& codec, const PageSpan& page, index_t first, index_t count,
                         const RowBlock<const float>& weights, const RowBlock<float>& out) {
    cpu::row_ops().add_rows(codec.dtype, at(codec, page, first), count, page.dim, weights, out, ahead(codec, page, first));
  }

 private:
  static std::byte* at(const ExactRows& codec, const PageSpan& page, index_t slot) {
    return page.data + static_cast<std::size_t>(slot * page.dim) * size_of(codec.dtype);
  }
  static const std::byte* ahead(const ExactRows& codec, const PageSpan& page, index_t slot) {
    return page.next == nullptr ? nullptr : page.next + static_cast<std::size_t>(slot * page.dim) * size_of(codec.dtype);
  }
};

}  // namespace kvcondense::prim
