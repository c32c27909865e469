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
      auto* bits = reinterpret_cast<std::uint16_t*>(row);
      if (codec.dtype == DType::f16)
        for (index_t d = 0; d < page.dim; ++d) bits[d] = detail::half_bits(x[d]);
      else
        for (index_t d = 0; d < page.dim; ++d) bits[d] = detail::bfloat16_bits(x[d]);
    }
    return 0;
  }

  static void decode(const ExactRows& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    for (index_t i = 0; i < count; ++i) {
      const std::byte* row = at(codec, page, first + i);
      float* x = rows.data + i * rows.step;
      if (codec.dtype == DType::f32) {
        std::memcpy(x, row, static_cast<std::size_t>(page.dim) * sizeof(float));
        continue;
      }
      const auto* bits = reinterpret_cast<const std::uint16_t*>(row);
      if (codec.dtype == DType::f16)
        for (index_t d = 0; d < page.dim; ++d) x[d] = detail::half_value(bits[d]);
      else
        for (index_t d = 0; d < page.dim; ++d) x[d] = detail::bfloat16_value(bits[d]);
    }
  }

  static void move(const ExactRows& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    std::memmove(at(codec, to, to_slot), at(codec, from, from_slot),
                 static_cast<std::size_t>(to.dim) * size_of(codec.dtype));
  }

  static void scores(const ExactRows& codec, PageSpan page, index_t first, index_t count,
                     RowBlock<const float> queries, RowBlock<float> out) {
    for_tiles(codec, page, first, count, [&](const float* tile, index_t done, index_t n) {
      cpu::dot_rows(tile, n, page.dim, queries, {out.data + done, out.rows, out.step});
    });
  }

  static void accumulate(const ExactRows& codec, PageSpan page, index_t first, index_t count,
                         RowBlock<const float> weights, RowBlock<float> out) {
    for_tiles(codec, page, first, count, [&](const float* tile, index_t done, index_t n) {
      cpu::add_rows(tile, n, page.dim, {weights.data + done, weights.rows, weights.step}, out);
    });
  }

 private:
  static std::byte* at(const ExactRows& codec, PageSpan page, index_t slot) {
    return page.data + static_cast<std::size_t>(slot * page.dim) * size_of(codec.dtype);
  }

  /// f32 pages are read in place; 16-bit rows are widened once per tile for all queries of the block.
  template <class F>
  static void for_tiles(const ExactRows& codec, PageSpan page, index_t first, index_t count, F&& use) {
    alignas(64) float tile[cpu::tile_slots * max_head_dim];
    for (index_t done = 0; done < count; done += cpu::tile_slots) {
      const index_t n = std::min(cpu::tile_slots, count - done);
      if (codec.dtype == DType::f32) {
        use(reinterpret_cast<const float*>(at(codec, page, first + done)), done, n);
        continue;
      }
      decode(codec, page, first + done, n, {tile, n, page.dim});
      use(tile, done, n);
    }
  }
};

}  // namespace kvcondense::prim
