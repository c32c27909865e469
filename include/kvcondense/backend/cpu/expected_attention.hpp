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
#include <kvcondense/prim/expected_attention.hpp>
#include <kvcondense/prim/rope.hpp>

namespace kvcondense::prim {

template <>
struct ExpectedAttention<Cpu> {
  static std::size_t workspace_bytes(index_t kv_heads, index_t dim, index_t slots) {
    return Scratch::bytes_for<float>(kv_heads * dim * (dim + 1)) + Scratch::bytes_for<float>(slots);
  }

  static Status run(Context<Cpu>& ctx, const ExpectedQueries& q, const SlotRows<Cpu>& keys, RaggedView<float> out,
                    Scratch& scratch) {
    const index_t dim = keys.dim(), group = q.mean.extent[0] / out.heads;
    const Expected<RopeAngles> angles = rope_angles(q.rope, dim);
    if (!angles) return angles.status();
    float* turned = scratch.take<float>(out.heads * dim * (dim + 1));
    float* logits = scratch.take<float>(out.size());
    if (turned == nullptr || logits == nullptr) return Status::workspace_too_small;
    const MeanTurn turn = mean_turn(*angles, q.position, q.horizon);
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      float* m = turned + h * dim * (dim + 1);
      float* s = m + dim;
      std::fill_n(out.row(h), out.length(h), 0.0f);
      for (index_t member = 0; member < group; ++member) {
        const index_t head = h * group + member;
        for (index_t d = 0; d < dim; ++d) m[d] = q.mean(head, d);
        turn.row(m, 1);
        for (index_t i = 0; i < dim; ++i)
          for (index_t d = 0; d < dim; ++d) s[i * dim + d] = q.covariance(head, i, d);
        for (index_t i = 0; i < dim; ++i) turn.row(s + i * dim, 1);  // S R^T
        for (index_t d = 0; d < dim; ++d) turn.row(s + d, dim);      // R S R^T
        add(q, keys, h, m, s, group, logits + out.offset[h], out);
      }
    });
    return Status::ok;
  }

 private:
  /// Adds the softmax of one query head to its KV head's row.
  static void add(const ExpectedQueries& q, const SlotRows<Cpu>& keys, index_t h, const float* m, const float* s,
                  index_t group, float* logits, RaggedView<float> out) {
    const index_t dim = keys.dim(), n = out.length(h), first = std::min(q.skip, n);
    const float half = 0.5f * q.scale * q.scale;
    alignas(64) float tile[cpu::tile_slots * max_head_dim];
    float top = -std::numeric_limits<float>::infinity(), sum = 0.0f;
    for (index_t j = first; j < n; j += cpu::tile_slots) {
      const index_t count = std::min(cpu::tile_slots, n - j);
      keys.read(h, j, {tile, count, dim});
      for (index_t i = 0; i < count; ++i) {
        const float* k = tile + i * dim;
        float e = q.scale * cpu::dot(k, m, dim), square = 0.0f;
        for (index_t d = 0; q.spread && d < dim; ++d) square += k[d] * cpu::dot(s + d * dim, k, dim);
        e += half * square;
        logits[j + i] = e;
        if (e > top && e < std::numeric_limits<float>::infinity()) top = e;
      }
    }
    for (index_t j = first; j < n; ++j) sum += std::isfinite(logits[j]) ? std::exp(logits[j] - top) : 0.0f;
    const float share = 1.0f / (sum * static_cast<float>(group));
    for (index_t j = first; j < n; ++j)
      out.row(h)[j] += std::isfinite(logits[j]) ? std::exp(logits[j] - top) * share
                                               : std::numeric_limits<float>::quiet_NaN();
  }
};

}  // namespace kvcondense::prim
