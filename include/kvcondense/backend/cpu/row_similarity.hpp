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
#include <kvcondense/prim/row_similarity.hpp>

namespace kvcondense::prim {

template <>
struct RowSimilarity<Cpu> {
  static Status nearest(Context<Cpu>& ctx, const SlotRows<Cpu>& keys, const SlotRows<Cpu>* values, const SlotRange* targets,
                        index_t chunk, const MergeLinks& links) {
    ctx.parallel(links.heads(), [&](index_t h, index_t) {
      Search(keys, values, targets[h], chunk, h, links).run();
    });
    return Status::ok;
  }

  static Status adjacent(Context<Cpu>& ctx, const SlotRows<Cpu>& keys, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const index_t n = out.length(h), dim = keys.dim();
      alignas(64) float rows[(tile + 1) * max_head_dim];
      float before = 0.0f;  // 1 / length of the row at hand
      for (index_t j = 0; j < n; j += tile) {
        const index_t m = std::min(tile + 1, n - j);
        keys.read(h, j, {rows, m, dim});
        if (j == 0) before = inverse(rows, dim);
        for (index_t i = 0; i + 1 < m; ++i) {
          const float next = inverse(rows + (i + 1) * dim, dim);
          out.row(h)[j + i] = cpu::dot(rows + i * dim, rows + (i + 1) * dim, dim) * before * next;
          before = next;
        }
      }
      if (n > 0) out.row(h)[n - 1] = 0.0f;
    });
    return Status::ok;
  }

  static Status gaussian(Context<Cpu>& ctx, const SlotRows<Cpu>& keys, float sigma, const MergeLinks& links) {
    ctx.parallel(links.heads(), [&](index_t h, index_t) {
      const index_t n = links.slots(h), dim = keys.dim();
      const std::int32_t* to = links.to.row(h);
      float* x = links.likeness.row(h);
      alignas(64) float row[max_head_dim], target[max_head_dim];
      index_t at = -1;
      for (index_t j = 0; j < n; ++j) {
        if (!links.folds(h, j)) continue;
        if (to[j] != at) keys.read(h, at = to[j], {target, 1, dim});
        keys.read(h, j, {row, 1, dim});
        float sum = 0.0f;
        for (index_t d = 0; d < dim; ++d) sum += (row[d] - target[d]) * (row[d] - target[d]);
        x[j] = std::sqrt(sum);
      }
      // Sums of a target's distances and their number lie at its own place while they are needed.
      float *mean = links.key.row(h), *count = links.value.row(h);
      for (index_t j = 0; j < n; ++j) mean[j] = 0.0f, count[j] = 1.0f;  // its own, 0 away
      for (index_t j = 0; j < n; ++j)
        if (links.folds(h, j)) mean[to[j]] += x[j], count[to[j]] += 1.0f;
      for (index_t j = 0; j < n; ++j) {
        if (!links.folds(h, j)) continue;
        const float spread = sigma > 0.0f ? sigma : mean[to[j]] / count[to[j]] * 0.70710678f;
        const bool alike = sigma <= 0.0f && mean[to[j]] / count[to[j]] < 1e-6f;
        x[j] = alike ? 1.0f : std::exp(-0.5f * (x[j] / spread) * (x[j] / spread));
      }
    });
    return Status::ok;
  }

 private:
  static constexpr index_t tile = cpu::tile_slots;
  static constexpr index_t together = 32;  ///< slots that read the targets together
  static constexpr float nothing = -std::numeric_limits<float>::infinity();

  /// 0 for a row of zeros, NaN for a bad one.
  static float inverse(const float* x, index_t dim) {
    const float square = cpu::dot(x, x, dim);
    if (!std::isfinite(square)) return std::numeric_limits<float>::quiet_NaN();
    return square > 0.0f ? 1.0f / std::sqrt(square) : 0.0f;
  }

  struct Search {
    const SlotRows<Cpu>& keys;
    const SlotRows<Cpu>* values;
    SlotRange range;
    index_t chunk, head, n;
    std::int32_t* to;
    float* likeness;

    Search(const SlotRows<Cpu>& k, const SlotRows<Cpu>* v, SlotRange r, index_t c, index_t h, const MergeLinks& links)
        : keys(k), values(v), range(r), chunk(c), head(h), n(links.slots(h)), to(links.to.row(h)), likeness(links.likeness.row(h)) {}

    alignas(64) float key[together * max_head_dim];
    alignas(64) float value[together * max_head_dim];
    index_t slot[together];
    float best[together];
    std::int32_t found[together];

    void run() {
      for (index_t j = 0; j < n;) {
        index_t count = 0;
        for (; j < n && count < together; ++j)
          if (to[j] == unlinked) slot[count++] = j;
        if (count == 0) return;
        load(count);
        if (chunk == 0) search(count, 0, range.prefix);
        index_t begin = range.begin, end = range.end;
        if (chunk > 0) {  // only where some slot of this block can find one
          begin = std::max(begin, chunk_begin(slot[0]));
          end = std::min(end, chunk_begin(slot[count - 1]) + chunk);
        }
        search(count, begin, end);
        for (index_t i = 0; i < count; ++i) {
          likeness[slot[i]] = best[i];
          if (found[i] >= 0) pending(i);
        }
      }
      // Links only now: until here a slot that is its own target is one that stays.
      for (index_t j = 0; j < n; ++j)
        if (to[j] <= first_mark) to[j] = first_mark - to[j];
    }

    // Found targets are written as marks below `dropped`, so that the search goes on over the slots that stay.
    static constexpr std::int32_t first_mark = dropped - 1;
    void pending(index_t i) { to[slot[i]] = first_mark - found[i]; }

    index_t chunk_begin(index_t j) const { return range.begin + (j - range.begin) / chunk * chunk; }

    void load(index_t count) {
      const index_t dim = keys.dim();
      for (index_t i = 0; i < count; ++i) {
        best[i] = nothing, found[i] = unlinked;
        unit(keys, slot[i], key + i * dim);
        if (values != nullptr) unit(*values, slot[i], value + i * values->dim());
      }
    }
    void unit(const SlotRows<Cpu>& rows, index_t j, float* x) const {
      rows.read(head, j, {x, 1, rows.dim()});
      const float inv = inverse(x, rows.dim());
      for (index_t d = 0; d < rows.dim(); ++d) x[d] *= inv;
    }

    void search(index_t count, index_t begin, index_t end) {
      alignas(64) float rows[tile * max_head_dim];
      float cosine[together * tile], product[together * tile];
      for (index_t at = begin; at < end; at += tile) {
        const index_t m = std::min(tile, end - at);
        bool any = false;
        for (index_t k = 0; k < m; ++k) any = any || to[at + k] == at + k;
        if (!any) continue;
        cosines(keys, key, count, at, m, rows, cosine);
        if (values != nullptr) {
          cosines(*values, value, count, at, m, rows, product);
          for (index_t i = 0; i < count; ++i)
            for (index_t k = 0; k < m; ++k) {  // NaN stays
              float &a = cosine[i * tile + k], b = product[i * tile + k];
              a = a > 0.0f && b > 0.0f ? a * b : (a + b) * 0.0f;
            }
        }
        for (index_t i = 0; i < count; ++i)
          for (index_t k = 0; k < m; ++k) {
            if (to[at + k] != at + k || !(cosine[i * tile + k] > best[i])) continue;
            if (chunk > 0 && (slot[i] < range.begin || chunk_begin(at + k) != chunk_begin(slot[i]))) continue;
            best[i] = cosine[i * tile + k];
            found[i] = static_cast<std::int32_t>(at + k);
          }
      }
    }

    void cosines(const SlotRows<Cpu>& from, const float* block, index_t count, index_t at, index_t m, float* rows,
                 float* out) const {
      const index_t dim = from.dim();
      from.read(head, at, {rows, m, dim});
      cpu::dot_rows(rows, m, dim, {block, count, dim}, {out, count, tile});
      for (index_t k = 0; k < m; ++k) {
        const float inv = inverse(rows + k * dim, dim);
        for (index_t i = 0; i < count; ++i) out[i * tile + k] *= inv;
      }
    }
  };
};

}  // namespace kvcondense::prim
