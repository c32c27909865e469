#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/backend/cpu/slot_tiles.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/row_direction.hpp>

namespace kvcondense::prim {

template <>
struct RowDirection<Cpu> {
  static Status run(Context<Cpu>& ctx, const SlotRows<Cpu>& rows, Anchor anchor, float factor,
                    RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const index_t dim = rows.dim();
      alignas(64) float unit[max_head_dim];
      find_direction(rows, h, anchor, out, unit);
      cpu::for_slot_tiles(rows, h, 0, out.length(h), [&](index_t first, const float* x, index_t n) {
        float along[cpu::most_tile_rows];
        cpu::dot_rows(x, n, dim, {unit, 1, dim}, {along, 1, n});
        for (index_t i = 0; i < n; ++i) out.row(h)[first + i] *= factor * along[i];
      });
    });
    return Status::ok;
  }

 private:
  /// The unit vector along the anchor, zeros where there is none. out = 1 / length of each row: 0 for a
  /// row of zeros, NaN for a bad one, so that the second pass need not ask.
  static void find_direction(const SlotRows<Cpu>& rows, index_t h, Anchor anchor, RaggedView<float> out,
                             float* unit) {
    const index_t dim = rows.dim();
    double sum[max_head_dim] = {}, lengths = 0.0;
    cpu::for_slot_tiles(rows, h, 0, out.length(h), [&](index_t first, const float* x, index_t n) {
      float square[cpu::most_tile_rows];
      cpu::row_ops().squares(x, n, dim, square);
      cpu::WeightedRows counted;
      for (index_t i = 0; i < n; ++i) {
        const bool good = std::isfinite(square[i]);
        const float inverse = good && square[i] > 0.0f ? 1.0f / std::sqrt(square[i]) : 0.0f;
        out.row(h)[first + i] = good ? inverse : std::numeric_limits<float>::quiet_NaN();
        if (inverse == 0.0f) continue;
        const double weight = anchor == Anchor::mean_direction ? static_cast<double>(inverse) : 1.0;
        counted.take(x + i * dim, weight);
        lengths += weight / static_cast<double>(inverse);
      }
      counted.add_to(sum, dim);
    });
    double square = 0.0;
    for (index_t d = 0; d < dim; ++d) square += sum[d] * sum[d];
    const double length = std::sqrt(square);
    const bool known = length > 1e-6 * lengths;
    for (index_t d = 0; d < dim; ++d) unit[d] = known ? static_cast<float>(sum[d] / length) : 0.0f;
  }
};

}  // namespace kvcondense::prim
