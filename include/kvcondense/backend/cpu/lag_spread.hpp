#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/open_blocks.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/lag_spread.hpp>

namespace kvcondense::prim {

template <>
struct LagSpread<Cpu> {
  static Status add(Context<Cpu>& ctx, const SlotRows<Cpu>& rows, index_t block, float weight,
                    RaggedView<float> spread, RaggedView<float> scores) {
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const cpu::Span run = cpu::competing(scores.row(h), scores.length(h), {});
      float* u = spread.row(h);
      for (index_t first = run.first; first < run.last; first += block) {
        const Scale scale = scale_of(rows, h, first + block, block);
        each_tile(rows, h, first, block, [&](index_t j, const float* x) {
          u[j] = deviation(x, scale, rows.dim());
        });
        add_softmax(u + first, block, weight, scores.row(h) + first);
      }
    });
    return Status::ok;
  }

 private:
  /// x[c] becomes (x[c] - lowest[c]) * inverse[c].
  struct Scale {
    float lowest[max_head_dim];
    float inverse[max_head_dim];
  };

  template <class F>
  static void each_tile(const SlotRows<Cpu>& rows, index_t h, index_t first, index_t n, F&& use) {
    alignas(64) float tile[cpu::tile_slots * max_head_dim];
    const index_t dim = rows.dim();
    for (index_t j = 0; j < n; j += cpu::tile_slots) {
      const index_t m = std::min(cpu::tile_slots, n - j);
      rows.read(h, first + j, {tile, m, dim});
      for (index_t i = 0; i < m; ++i) use(first + j + i, tile + i * dim);
    }
  }

  static Scale scale_of(const SlotRows<Cpu>& rows, index_t h, index_t first, index_t block) {
    const index_t dim = rows.dim();
    Scale s;
    float highest[max_head_dim];
    std::fill_n(s.lowest, dim, std::numeric_limits<float>::infinity());
    std::fill_n(highest, dim, -std::numeric_limits<float>::infinity());
    each_tile(rows, h, first, block, [&](index_t, const float* x) {
      for (index_t c = 0; c < dim; ++c) {
        s.lowest[c] = x[c] < s.lowest[c] ? x[c] : s.lowest[c];
        highest[c] = x[c] > highest[c] ? x[c] : highest[c];
      }
    });
    for (index_t c = 0; c < dim; ++c) {
      const float range = highest[c] - s.lowest[c];
      const bool good = std::isfinite(range);
      s.inverse[c] = good ? 1.0f / std::max(range, 1e-6f) : 0.0f;
      if (!good) s.lowest[c] = 0.0f;
    }
    return s;
  }

  /// Two passes over a row that lies in the cache: the mean first, so that nothing cancels.
  static float deviation(const float* x, const Scale& s, index_t dim) {
    if (dim < 2) return 0.0f;
    float sum = 0.0f, squares = 0.0f;
    for (index_t c = 0; c < dim; ++c) sum += (x[c] - s.lowest[c]) * s.inverse[c];
    const float mean = sum / static_cast<float>(dim);
    for (index_t c = 0; c < dim; ++c) {
      const float y = (x[c] - s.lowest[c]) * s.inverse[c] - mean;
      squares += y * y;
    }
    return std::sqrt(squares / static_cast<float>(dim - 1));
  }

  static void add_softmax(const float* u, index_t n, float weight, float* scores) {
    float top = -std::numeric_limits<float>::infinity(), sum = 0.0f;
    for (index_t j = 0; j < n; ++j)
      if (std::isfinite(u[j])) top = std::max(top, u[j]);
    for (index_t j = 0; j < n; ++j)
      if (std::isfinite(u[j])) sum += std::exp(u[j] - top);
    for (index_t j = 0; j < n; ++j)
      scores[j] += std::isfinite(u[j]) ? weight * (std::exp(u[j] - top) / sum)
                                       : std::numeric_limits<float>::quiet_NaN();
  }
};

}  // namespace kvcondense::prim
