#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/chunk_memory.hpp>

namespace kvcondense::prim {

template <>
struct RetrieveChunks<Cpu> {
  static std::size_t workspace_bytes(index_t workers, index_t most, index_t chunk, index_t dim) {
    const std::size_t one = Scratch::bytes_for<float>(most) + Scratch::bytes_for<index_t>(most) +
                            Scratch::bytes_for<float>(most * chunk) + Scratch::bytes_for<float>(dim);
    return Scratch::align + static_cast<std::size_t>(workers) * one;
  }

  static Status means(Context<Cpu>& ctx, TensorView<const float, 3> keys, index_t chunk, TensorView<float, 3> out) {
    const index_t dim = keys.extent[2];
    if (out.extent[0] != keys.extent[0] || out.extent[2] != dim || keys.extent[1] != out.extent[1] * chunk) return Status::shape_mismatch;
    ctx.parallel(keys.extent[0], [&](index_t h, index_t) {
      const float part = 1.0f / static_cast<float>(chunk);
      for (index_t c = 0; c < out.extent[1]; ++c)
        for (index_t d = 0; d < dim; ++d) {
          float sum = 0.0f;
          for (index_t i = 0; i < chunk; ++i) sum += keys(h, c * chunk + i, d);
          out(h, c, d) = sum * part;
        }
    });
    return Status::ok;
  }

  static Status run(Context<Cpu>& ctx, const ChunkMemory& m, TensorView<const float, 3> queries, index_t most, float scale,
                    TensorView<float, 3> out, TensorView<float, 2> lse, TensorView<std::int32_t, 3> chosen, Scratch scratch) {
    if (!chunk_memory_fits(m, queries, most, out, lse, chosen)) return Status::shape_mismatch;
    const index_t q_heads = queries.extent[0], tokens = queries.extent[1], dim = queries.extent[2], kv = m.keys.extent[0];
    const std::size_t need = workspace_bytes(ctx.workers(), most, m.chunk, dim);
    if (scratch.left() < need) return Status::workspace_too_small;
    const std::size_t one = (need - Scratch::align) / static_cast<std::size_t>(ctx.workers());
    std::byte* base = scratch.take<std::byte>(static_cast<index_t>(need - Scratch::align));
    ctx.parallel(q_heads, [&](index_t h, index_t worker) {
      Scratch mine({base + static_cast<std::size_t>(worker) * one, one});
      float* best = mine.take<float>(most);
      index_t* picked = mine.take<index_t>(most);
      float* weights = mine.take<float>(most * m.chunk);
      float* q = mine.take<float>(dim);
      const index_t head = h / (q_heads / kv);
      for (index_t t = 0; t < tokens; ++t) {
        for (index_t d = 0; d < dim; ++d) q[d] = queries(h, t, d);
        const index_t n = pick(m, head, q, most, best, picked);
        std::sort(picked, picked + n);
        for (index_t i = 0; i < most && chosen.data != nullptr; ++i) chosen(h, t, i) = i < n ? static_cast<std::int32_t>(picked[i]) : -1;
        const float l = attend(m, head, q, scale, picked, n, weights, out, h, t);
        if (lse.data != nullptr) lse(h, t) = l;
      }
    });
    return Status::ok;
  }

 private:
  /// The best chunks, by insertion: few are wanted.
  static index_t pick(const ChunkMemory& m, index_t head, const float* q, index_t most, float* best, index_t* picked) {
    index_t n = 0;
    for (index_t c = 0; c < m.chunks && most > 0; ++c) {
      const float score = cpu::dot(q, &m.means(head, m.place(c), 0), m.means.extent[2]);
      if (score != score || (n == most && !(score > best[n - 1]))) continue;
      index_t at = n < most ? n++ : n - 1;
      for (; at > 0 && score > best[at - 1]; --at) best[at] = best[at - 1], picked[at] = picked[at - 1];
      best[at] = score, picked[at] = c;
    }
    return n;
  }

  static float attend(const ChunkMemory& m, index_t head, const float* q, float scale, const index_t* picked, index_t n, float* w,
                      const TensorView<float, 3>& out, index_t h, index_t t) {
    const index_t dim = m.keys.extent[2], width = m.values.extent[2];
    float top = -std::numeric_limits<float>::infinity(), sum = 0.0f;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < m.chunk; ++j) {
        const float l = cpu::dot(q, &m.keys(head, m.place(picked[i]) * m.chunk + j, 0), dim) * scale;
        w[i * m.chunk + j] = l;
        top = l > top ? l : top;
      }
    for (index_t d = 0; d < width; ++d) out(h, t, d) = 0.0f;
    if (n == 0) return top;
    for (index_t i = 0; i < n * m.chunk; ++i) sum += w[i] = std::exp(w[i] - top);
    for (index_t i = 0; i < n * m.chunk; ++i) {
      const float* v = &m.values(head, m.place(picked[i / m.chunk]) * m.chunk + i % m.chunk, 0);
      for (index_t d = 0; d < width; ++d) out(h, t, d) += w[i] / sum * v[d];
    }
    return top + std::log(sum);
  }
};

template <>
struct GatedMerge<Cpu> {
  static Status run(Context<Cpu>& ctx, TensorView<const float, 3> a, TensorView<const float, 3> b, std::span<const float> bias, TensorView<float, 3> out) {
    for (int i = 0; i < 3; ++i)
      if (a.extent[i] != out.extent[i] || b.extent[i] != out.extent[i]) return Status::shape_mismatch;
    if (static_cast<index_t>(bias.size()) != out.extent[0]) return Status::shape_mismatch;
    ctx.parallel(out.extent[0], [&](index_t h, index_t) {
      const float g = 1.0f / (1.0f + std::exp(-bias[static_cast<std::size_t>(h)]));
      for (index_t t = 0; t < out.extent[1]; ++t)
        for (index_t d = 0; d < out.extent[2]; ++d) out(h, t, d) = (1.0f - g) * a(h, t, d) + g * b(h, t, d);
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
