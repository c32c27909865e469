#pragma once

#include <algorithm>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/backend/cpu/slot_tiles.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/row_product.hpp>

namespace kvcondense::prim {

template <>
struct RowProduct<Cpu> {
  static Status run(Context<Cpu>& ctx, const SlotRows<Cpu>& rows, index_t newest, const float* directions, float factor,
                    RaggedView<float> out) {
    const index_t dim = rows.dim();
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const index_t slots = out.length(h);
      cpu::for_slot_tiles(rows, h, std::max<index_t>(0, slots - newest), slots, [&](index_t first, const float* x, index_t n) {
        float along[cpu::most_tile_rows];
        cpu::dot_rows(x, n, dim, {directions + h * dim, 1, dim}, {along, 1, n});
        for (index_t i = 0; i < n; ++i) out.row(h)[first + i] = factor * along[i];
      });
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
