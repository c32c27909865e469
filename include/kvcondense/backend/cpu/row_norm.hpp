#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/row_norm.hpp>

namespace kvcondense::prim {

template <>
struct RowNorm<Cpu> {
  static Status run(Context<Cpu>& ctx, const SlotRows<Cpu>& rows, index_t newest, float factor,
                    RaggedView<float> out) {
    const index_t dim = rows.dim();
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      alignas(64) float tile[cpu::tile_slots * max_head_dim];
      const index_t n = out.length(h);
      for (index_t j = std::max<index_t>(0, n - newest); j < n; j += cpu::tile_slots) {
        const index_t m = std::min(cpu::tile_slots, n - j);
        rows.read(h, j, {tile, m, dim});
        for (index_t i = 0; i < m; ++i) {
          const float* x = tile + i * dim;
          const float square = cpu::dot(x, x, dim);
          const float length =
              std::isfinite(square) ? std::sqrt(square) : std::numeric_limits<float>::infinity();
          out.row(h)[j + i] = factor * length;
        }
      }
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
