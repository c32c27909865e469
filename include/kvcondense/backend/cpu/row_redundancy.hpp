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
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/row_redundancy.hpp>

namespace kvcondense::prim {

template <>
struct RowRedundancy<Cpu> {
  static Status run(Context<Cpu>& ctx, const SlotRows<Cpu>& rows, float threshold, RaggedView<float> inverse,
                    RaggedView<float> out, Scratch&) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      Head head{rows, h, out.length(h), rows.dim(), threshold, inverse.row(h), out.row(h)};
      head.find_lengths();
      head.add_cosines();
      head.normalise();
    });
    return Status::ok;
  }

 private:
  static constexpr index_t tile = cpu::tile_slots;
  static constexpr index_t together = 32;  ///< rows that look back through the same tiles

  struct Head {
    const SlotRows<Cpu>& rows;
    index_t head, n, dim;
    float threshold;
    float *inverse, *out;
    index_t good = 0;
    double sum[max_head_dim] = {};  ///< of all directions

    void find_lengths() {
      alignas(64) float block[tile * max_head_dim];
      for (index_t j = 0; j < n; ++j) {
        if (j % tile == 0) rows.read(head, j, {block, std::min(tile, n - j), dim});
        float* x = block + j % tile * dim;
        const float square = cpu::dot(x, x, dim);
        const bool fine = std::isfinite(square);
        inverse[j] = fine ? 1.0f / (std::sqrt(square) + 1e-8f) : std::numeric_limits<float>::quiet_NaN();
        out[j] = 0.0f;
        if (!fine) continue;
        ++good;
        for (index_t d = 0; d < dim; ++d) sum[d] += static_cast<double>(x[d] * inverse[j]);
      }
    }

    /// Directions of slots [first, first + count).
    void read(index_t first, index_t count, float* to) const {
      rows.read(head, first, {to, count, dim});
      for (index_t i = 0; i < count; ++i)
        for (index_t d = 0; d < dim; ++d) to[i * dim + d] *= inverse[first + i];
    }

    /// out = sums of columns, without each row's last repetition.
    void add_cosines() {
      alignas(64) float block[together * max_head_dim];
      for (index_t first = 0; first < n; first += together) {
        const index_t count = std::min(together, n - first);
        read(first, count, block);
        for (index_t i = 0; i < count; ++i) {
          const float* x = block + i * dim;
          double all = 0.0;
          for (index_t d = 0; d < dim; ++d) all += sum[d] * static_cast<double>(x[d]);
          out[first + i] += static_cast<float>(all) - cpu::dot(x, x, dim);
        }
        look_back(block, first, count);
      }
    }

    void look_back(const float* block, index_t first, index_t count) {
      alignas(64) float other[tile * max_head_dim];
      float cosine[together * tile];
      bool found[together];
      index_t left = 0;
      for (index_t i = 0; i < count; ++i) left += !(found[i] = std::isnan(inverse[first + i]));
      for (index_t at = (n - 1) / tile * tile; at >= 0 && left > 0; at -= tile) {
        const index_t m = std::min(tile, n - at);
        read(at, m, other);
        cpu::dot_rows(other, m, dim, {block, count, dim}, {cosine, count, tile});
        for (index_t i = 0; i < count; ++i) {
          const float* c = cosine + i * tile;
          for (index_t j = m - 1; j >= 0 && !found[i]; --j) {
            if (at + j == first + i || !(c[j] > threshold)) continue;
            out[at + j] -= c[j];
            found[i] = true, --left;
          }
          if (at > 0 || found[i] || first + i == 0) continue;
          out[0] -= c[0];  // none to leave out
        }
      }
    }

    /// Softmax of the means.
    void normalise() const {
      const float each = 1.0f / static_cast<float>(std::max<index_t>(1, good));
      float top = -std::numeric_limits<float>::infinity();
      for (index_t j = 0; j < n; ++j) {
        out[j] = std::isnan(inverse[j]) ? inverse[j] : out[j] * each;
        if (out[j] > top) top = out[j];
      }
      double all = 0.0;
      for (index_t j = 0; j < n; ++j) {
        out[j] = std::exp(out[j] - top);
        if (!std::isnan(out[j])) all += static_cast<double>(out[j]);
      }
      const auto share = static_cast<float>(1.0 / all);
      for (index_t j = 0; j < n; ++j) out[j] *= share;
    }
  };
};

}  // namespace kvcondense::prim
