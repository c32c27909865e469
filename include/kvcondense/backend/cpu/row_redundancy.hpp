#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
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
                    RaggedView<float> out, Scratch& scratch) {
    const index_t total = out.heads > 0 ? out.offset[out.heads] : 0;
    // What every backend is given: what a pipeline plans for is the same on all of them.
    if (scratch.left() < row_redundancy_bytes(total, out.heads, rows.dim())) return Status::workspace_too_small;
    const RaggedView<std::int32_t> earlier{scratch.take<std::int32_t>(total), out.offset, out.heads};
    auto* reached = scratch.take<std::int32_t>(total / together + out.heads);
    if (earlier.data == nullptr || reached == nullptr) return Status::workspace_too_small;
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      Head head{rows, h, out.length(h), rows.dim(), threshold, inverse.row(h), out.row(h), earlier.row(h),
                reached + out.offset[h] / together + h};
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
    std::int32_t* earlier;  ///< per row: the last row of a block before its own that repeats it, as far as those blocks looked; or -1
    std::int32_t* reached;  ///< per block: the first row that it looked at behind itself
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
        out[j] = 0.0f, earlier[j] = -1;
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

    /// From the last row to the block itself; what lies before it was met when blocks there looked at this one, unless they
    /// had found all they wanted before they came to it.
    void look_back(const float* block, index_t first, index_t count) {
      bool found[together];
      index_t left = 0;
      for (index_t i = 0; i < count; ++i) left += !(found[i] = std::isnan(inverse[first + i]));
      index_t at = (n - 1) / tile * tile;
      for (; at >= first && left > 0; at -= tile) left -= look_at(block, first, count, at, found);
      reached[first / together] = static_cast<std::int32_t>(at + tile);
      for (at = first - tile; at >= 0 && left > 0; at -= tile) {
        if (reached[at / together] > first) {
          left -= look_at(block, first, count, at, found);
          continue;
        }
        for (index_t i = 0; i < count; ++i)
          if (!found[i] && earlier[first + i] >= at) leave_out(block + i * dim, earlier[first + i]), found[i] = true, --left;
      }
      for (index_t i = 0; i < count && left > 0; ++i)
        if (!found[i] && first + i > 0) leave_out(block + i * dim, 0);
    }

    /// Looks for repetitions in a tile, and for what rows of the tile repeat; returns how many rows found one.
    index_t look_at(const float* block, index_t first, index_t count, index_t at, bool* found) {
      alignas(64) float other[tile * max_head_dim];
      float cosine[together * tile];
      const index_t m = std::min(tile, n - at);
      read(at, m, other);
      cpu::dot_rows(other, m, dim, {block, count, dim}, {cosine, count, tile});
      index_t more = 0;
      for (index_t i = 0; i < count; ++i) {
        const float* c = cosine + i * tile;
        index_t above = 0;
        for (index_t j = 0; j < m; ++j) above += c[j] > threshold;
        for (index_t j = m - 1; j >= 0 && above > 0; --j) {
          if (!(c[j] > threshold)) continue;
          --above;
          if (at >= first + together) earlier[at + j] = static_cast<std::int32_t>(first + i);
          if (found[i] || at + j == first + i) continue;
          out[at + j] -= c[j];
          found[i] = true, ++more;
        }
      }
      return more;
    }

    void leave_out(const float* row, index_t slot) {
      alignas(64) float other[max_head_dim];
      read(slot, 1, other);
      out[slot] -= cpu::dot(other, row, dim);
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
