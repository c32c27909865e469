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
      each_tile(rows, h, out.length(h), [&](index_t j, const float* x) {
        out.row(h)[j] *= factor * cpu::dot(unit, x, dim);
      });
    });
    return Status::ok;
  }

 private:
  template <class F>
  static void each_tile(const SlotRows<Cpu>& rows, index_t h, index_t n, F&& use) {
    alignas(64) float tile[cpu::tile_slots * max_head_dim];
    const index_t dim = rows.dim();
    for (index_t j = 0; j < n; j += cpu::tile_slots) {
      const index_t m = std::min(cpu::tile_slots, n - j);
      rows.read(h, j, {tile, m, dim});
      for (index_t i = 0; i < m; ++i) use(j + i, tile + i * dim);
    }
  }

  /// The unit vector along the anchor, zeros where there is none. out = 1 / length of each row: 0 for a
  /// row of zeros, NaN for a bad one, so that the second pass need not ask.
  static void find_direction(const SlotRows<Cpu>& rows, index_t h, Anchor anchor, RaggedView<float> out,
                             float* unit) {
    const index_t dim = rows.dim();
    double sum[max_head_dim] = {}, lengths = 0.0;
    each_tile(rows, h, out.length(h), [&](index_t j, const float* x) {
      const float square = cpu::dot(x, x, dim);
      const bool good = std::isfinite(square);
      const float inverse = good && square > 0.0f ? 1.0f / std::sqrt(square) : 0.0f;
      out.row(h)[j] = good ? inverse : std::numeric_limits<float>::quiet_NaN();
      if (inverse == 0.0f) return;
      const double weight = anchor == Anchor::mean_direction ? static_cast<double>(inverse) : 1.0;
      for (index_t d = 0; d < dim; ++d) sum[d] += weight * static_cast<double>(x[d]);
      lengths += weight / static_cast<double>(inverse);
    });
    double square = 0.0;
    for (index_t d = 0; d < dim; ++d) square += sum[d] * sum[d];
    const double length = std::sqrt(square);
    const bool known = length > 1e-6 * lengths;
    for (index_t d = 0; d < dim; ++d) unit[d] = known ? static_cast<float>(sum[d] / length) : 0.0f;
  }
};

}  // namespace kvcondense::prim
