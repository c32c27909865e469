#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/attend.hpp>

namespace kvcondense::prim {

/// Flash-style attention on the host: blocks of query rows x strips of slots.
template <>
struct Attend<Cpu> {
  static constexpr index_t block_rows = 32;  ///< query rows (tokens x group) that share one read of the slots
  static constexpr index_t strip = 512;      ///< slots between two updates of the running softmax

  /// Scratch of one call: for every worker, one block of rows of these widths.
  static std::size_t workspace_bytes(index_t workers, index_t q_rows, index_t max_slots, index_t query_width,
                                     index_t value_width, bool mass) {
    const index_t rows = std::min(block_rows, q_rows);
    const index_t width = mass ? std::max(max_slots, index_t{1}) : std::min(strip, std::max(max_slots, index_t{1}));
    const std::size_t one = Scratch::bytes_for<float>(rows * query_width) + Scratch::bytes_for<float>(rows * value_width) +
                            Scratch::bytes_for<float>(rows * width) + Scratch::bytes_for<float>(rows * strip);
    return Scratch::align + static_cast<std::size_t>(workers) * one;
  }

  template <class Heads>
  static Status run(Context<Cpu>& ctx, const AttendRequest& request, index_t kv_heads, Heads&& heads) {
    const index_t group = request.queries.extent[0] / kv_heads;
    const index_t q_rows = group * request.queries.extent[1];
    if (q_rows == 0) return Status::ok;
    index_t max_slots = 0;
    for (index_t h = 0; h < kv_heads; ++h) max_slots = std::max(max_slots, heads(h).slots());
    const bool mass = request.mass.data != nullptr;
    const index_t q_width = widest_query(heads, kv_heads, request.queries.extent[2]);
    const index_t v_width = widest_value(heads, kv_heads, request.out.extent[2]);
    const std::size_t need = workspace_bytes(ctx.workers(), q_rows, max_slots, q_width, v_width, mass);
    if (ctx.workspace().size() < need) return Status::workspace_too_small;
    const std::size_t one = (need - Scratch::align) / static_cast<std::size_t>(ctx.workers());
    Scratch all(ctx.workspace());
    std::byte* base = all.take<std::byte>(static_cast<index_t>(need - Scratch::align));

    // One task per head: blocks of a head add to the same mass, in a fixed order.
    ctx.parallel(kv_heads, [&](index_t h, index_t worker) {
      Block block;
      block.scratch(Scratch({base + static_cast<std::size_t>(worker) * one, one}), std::min(block_rows, q_rows), q_width,
                    v_width, mass ? std::max(max_slots, index_t{1}) : std::min(strip, std::max(max_slots, index_t{1})));
      auto head = heads(h);
      if (mass) std::fill_n(request.mass.row(h), head.slots(), 0.0f);
      for (index_t first = 0; first < q_rows; first += block_rows)
        block.run(request, head, h * group, group, first, std::min(block_rows, q_rows - first));
    });
    return Status::ok;
  }

 private:
  struct Block {
    float *queries, *out, *logits, *weights;
    index_t width, q_width, v_width;
    float max[block_rows], sum[block_rows];
    index_t visible[block_rows];

    void scratch(Scratch s, index_t rows, index_t query_width, index_t value_width, index_t logit_width) {
      q_width = query_width, v_width = value_width;
      queries = s.take<float>(rows * q_width);
      out = s.take<float>(rows * v_width);
      logits = s.take<float>(rows * logit_width);
      weights = s.take<float>(rows * strip);
      width = logit_width;
    }

    /// Rows [first, first + rows) of the head's queries; row f is token f / group, group member f % group.
    template <class Head>
    void run(const AttendRequest& request, Head& head, index_t q_head, index_t group, index_t first, index_t rows) {
      const index_t tokens = request.queries.extent[1], dim = request.queries.extent[2];
      const index_t value_dim = request.out.extent[2], slots = head.slots();
      const SlotScalars scalars = head.scalars();
      const SummarySlot summary = summary_of(head);
      index_t last = 0;
      for (index_t r = 0; r < rows; ++r) {
        const index_t token = (first + r) / group, member = (first + r) % group;
        visible[r] = std::clamp<index_t>(visible_slots(head, token, tokens), 0, slots);
        last = std::max(last, visible[r]);
        float* q = queries + r * q_width;
        for (index_t d = 0; d < dim; ++d) q[d] = request.queries(q_head + member, token, d);
        head.prepare_query(q, token, visible[r] - 1);
        for (index_t d = 0; d < dim; ++d) q[d] *= request.softmax_scale;
        max[r] = -std::numeric_limits<float>::infinity();
        sum[r] = 0.0f;
      }
      if constexpr (requires { head.begin_queries(RowBlock<float>{}); }) head.begin_queries({queries, rows, q_width});
      std::fill_n(out, rows * v_width, 0.0f);
      for (index_t r = 0; summary.key != nullptr && r < rows; ++r) {
        max[r] = cpu::dot(queries + r * q_width, summary.key, dim) + summary.bias;
        sum[r] = 1.0f;
        std::copy_n(summary.value, value_dim, out + r * v_width);
      }

      const bool keep_logits = request.mass.data != nullptr;
      typename Head::Cursor key_at{}, value_at{};
      for (index_t at = 0; at < last; at += strip) {
        const index_t n = std::min(strip, last - at);
        float* l = keep_logits ? logits + at : logits;
        head.key_scores(key_at, n, {queries, rows, q_width}, {l, rows, width}, at);
        for (index_t r = 0; r < rows; ++r) softmax_strip(l + r * width, r, at, n, scalars);
        head.add_values(value_at, n, {weights, rows, strip}, {out, rows, v_width});
      }
      if constexpr (requires { head.finish_values(RowBlock<float>{}); }) head.finish_values({out, rows, v_width});

      for (index_t r = 0; r < rows; ++r) {
        const index_t token = (first + r) / group, member = (first + r) % group;
        const float inv = sum[r] > 0.0f ? 1.0f / sum[r] : 0.0f;
        for (index_t d = 0; d < value_dim; ++d)
          request.out(q_head + member, token, d) = visible[r] > 0 || summary.key != nullptr ? out[r * v_width + d] * inv : 0.0f;
        if (request.lse.data != nullptr) request.lse(q_head + member, token) = max[r] + std::log(sum[r]);
        if (keep_logits && token >= tokens - request.mass_rows)
          add_mass(request.mass.row(q_head / group), logits + r * width, visible[r], max[r], inv);
      }
    }

    /// Turns a strip of scores into logits and weights, and moves the running maximum and sum.
    void softmax_strip(float* l, index_t r, index_t at, index_t n, const SlotScalars& scalars) {
      const index_t seen = std::clamp<index_t>(visible[r] - at, 0, n);
      if (scalars.key_scale != nullptr)
        for (index_t i = 0; i < seen; ++i) l[i] *= scalars.key_scale[at + i];
      if (scalars.bias != nullptr)
        for (index_t i = 0; i < seen; ++i) l[i] += scalars.bias[at + i];
      float top = max[r];
      for (index_t i = 0; i < seen; ++i) top = l[i] > top ? l[i] : top;
      float* w = weights + r * strip;
      if (top == -std::numeric_limits<float>::infinity()) {
        // Nothing visible yet, or every bias so far is -inf; NaN logits end here too and stay NaN.
        for (index_t i = 0; i < n; ++i) w[i] = i < seen && l[i] != l[i] ? l[i] : 0.0f;
        for (index_t i = 0; i < seen; ++i) sum[r] += w[i];
        return;
      }
      if (top > max[r]) {
        const float shrink = std::exp(max[r] - top);
        sum[r] *= shrink;
        for (index_t d = 0; d < v_width; ++d) out[r * v_width + d] *= shrink;
        max[r] = top;
      }
      float s = 0.0f;
      for (index_t i = 0; i < seen; ++i) {
        w[i] = std::exp(l[i] - top);
        s += w[i];
      }
      sum[r] += s;
      std::fill(w + seen, w + n, 0.0f);
      if (scalars.value_scale != nullptr)
        for (index_t i = 0; i < seen; ++i) w[i] *= scalars.value_scale[at + i];
    }

    static void add_mass(float* mass, const float* l, index_t n, float top, float inv) {
      for (index_t i = 0; i < n; ++i) mass[i] += std::exp(l[i] - top) * inv;
    }
  };
};

}  // namespace kvcondense::prim
