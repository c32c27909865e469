#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/slot_numbers.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/attend.hpp>

namespace kvcondense::prim {

/// Flash-style attention on the host: blocks of query rows x strips of slots. Stretches of `part` slots are summed each for
/// itself and joined in order, so that where heads are fewer than workers, parts of a head are tasks of their own.
template <>
struct Attend<Cpu> {
  static constexpr index_t block_rows = 32;  ///< query rows (tokens x group) that share one read of the slots
  static constexpr index_t strip = 512;      ///< slots between two updates of the running softmax
  static constexpr index_t part = 4 * strip;

  /// Whether attention of so many query rows of a KV head can be added to running sums: blocks of rows would add one after the
  /// other, which rounds otherwise than the sum of all.
  static constexpr bool counts(index_t q_rows) { return q_rows <= block_rows; }

  /// Scratch of one call: for every worker, one block of rows of these widths; where heads are fewer than workers, the sums
  /// of every part instead.
  static std::size_t workspace_bytes(index_t workers, index_t kv_heads, index_t q_rows, index_t max_slots, index_t query_width,
                                     index_t value_width, bool mass) {
    const Sizes size{std::min(block_rows, q_rows), std::max(max_slots, index_t{1}), query_width, value_width, mass};
    std::size_t bytes = static_cast<std::size_t>(workers) * size.worker(false);
    if (workers > kv_heads && max_slots > part)
      bytes = std::max(bytes, static_cast<std::size_t>(workers) * size.worker(true) + static_cast<std::size_t>(kv_heads) * size.head());
    return Scratch::align + bytes;
  }

  /// counted: only where `counts` says so of the rows of a group.
  template <class Heads>
  static Status run(Context<Cpu>& ctx, const AttendRequest& request, index_t kv_heads, Heads&& heads, const AttentionSums& counted = {}) {
    const index_t group = request.queries.extent[0] / kv_heads;
    const index_t q_rows = group * request.queries.extent[1];
    if (q_rows == 0) return Status::ok;
    index_t max_slots = 0;
    for (index_t h = 0; h < kv_heads; ++h) max_slots = std::max(max_slots, heads(h).slots());
    const Sizes size{std::min(block_rows, q_rows), std::max(max_slots, index_t{1}), widest_query(heads, kv_heads, request.queries.extent[2]),
                     widest_value(heads, kv_heads, request.out.extent[2]), request.mass.data != nullptr || counted};
    const bool split = can_seek<decltype(heads(0))> && ctx.workers() > kv_heads && q_rows <= block_rows && max_slots > part;
    const std::size_t one = size.worker(split), each = split ? size.head() : 0;
    const std::size_t need = static_cast<std::size_t>(ctx.workers()) * one + static_cast<std::size_t>(kv_heads) * each;
    if (ctx.workspace().size() < Scratch::align + need) return Status::workspace_too_small;
    Scratch all(ctx.workspace());
    std::byte* base = all.take<std::byte>(static_cast<index_t>(need));
    const auto worker_scratch = [&](index_t w) { return Scratch({base + static_cast<std::size_t>(w) * one, one}); };
    const auto head_scratch = [&](index_t h) {
      return Scratch({base + static_cast<std::size_t>(ctx.workers()) * one + static_cast<std::size_t>(h) * each, each});
    };

    if constexpr (can_seek<decltype(heads(0))>) {
      if (split) {
        const index_t parts = size.parts();
        ctx.parallel(kv_heads * parts, [&](index_t task, index_t worker) {
          const index_t h = task / parts, at = task % parts * part;
          auto head = heads(h);
          if (at > 0 && at >= head.slots()) return;
          HeadParts of(size, head_scratch(h));
          Block block(size, worker_scratch(worker), true);
          if (size.mass) block.keep_in(of.kept);
          block.begin(request, head, h * group, group, 0, q_rows);
          if (counted) block.awaited = counted.sums.row(h);
          Sums sums = of.sums(task % parts);
          block.start(sums, head, at == 0, request.out.extent[2]);
          typename std::remove_cvref_t<decltype(head)>::Cursor keys{}, values{};
          head.seek(keys, values, at);
          block.add(head, sums, keys, values, at);
        });
        ctx.parallel(kv_heads, [&](index_t h, index_t worker) {
          auto head = heads(h);
          HeadParts of(size, head_scratch(h));
          Block block(size, worker_scratch(worker), true);
          if (size.mass) block.keep_in(of.kept);
          block.see(request, head, group, 0, q_rows);
          Sums sums = of.sums(0);
          for (index_t p = 1; p * part < head.slots(); ++p) join(sums, of.sums(p), q_rows);
          if (request.mass.data != nullptr) std::fill_n(request.mass.row(h), head.slots(), 0.0f);
          block.finish(request, head, sums, h * group, group, 0);
          if (counted) block.count(request, counted, sums, h);
        });
        return Status::ok;
      }
    }

    // One task per head: blocks of a head add to the same mass, in a fixed order.
    ctx.parallel(kv_heads, [&](index_t h, index_t worker) {
      Block block(size, worker_scratch(worker), false);
      auto head = heads(h);
      if (request.mass.data != nullptr) std::fill_n(request.mass.row(h), head.slots(), 0.0f);
      for (index_t first = 0; first < q_rows; first += block_rows)
        block.run(request, counted, head, h, group, first, std::min(block_rows, q_rows - first));
    });
    return Status::ok;
  }

 private:
  template <class Head>
  static constexpr bool can_seek = requires(Head head, typename std::remove_cvref_t<Head>::Cursor c) { head.seek(c, c, index_t{}); };

  /// The running softmax of a block of rows: largest logits, sums of weights, weighted sums of values.
  struct Sums {
    float *out, *max, *sum;
    index_t width;

    static std::size_t bytes(index_t rows, index_t width) {
      return Scratch::bytes_for<float>(rows * width) + 2 * Scratch::bytes_for<float>(rows);
    }
    Sums(Scratch& s, index_t rows, index_t value_width)
        : out(s.take<float>(rows * value_width)), max(s.take<float>(rows)), sum(s.take<float>(rows)), width(value_width) {}
  };

  struct Sizes {
    index_t rows, slots, query_width, value_width;
    bool mass;

    index_t parts() const { return (slots + part - 1) / part; }
    index_t strips() const { return (slots + strip - 1) / strip; }
    std::size_t kept() const { return Scratch::bytes_for<float>(rows * slots) + Scratch::bytes_for<float>(rows * strips()); }
    std::size_t worker(bool split) const {
      return Scratch::bytes_for<float>(rows * query_width) + (mass ? Scratch::bytes_for<float>(rows * strip) : 0) +
             (split ? 0 : 2 * Sums::bytes(rows, value_width)) +
             (mass && !split ? kept() : Scratch::bytes_for<float>(rows * std::min(strip, slots)));
    }
    std::size_t head() const { return static_cast<std::size_t>(parts()) * Sums::bytes(rows, value_width) + (mass ? kept() : 0); }
  };

  /// What a mass is made of: the weights of all slots, and the maximum of each row that those of a strip are relative to.
  struct Kept {
    float *weights = nullptr, *tops = nullptr;
    Kept() = default;
    Kept(Scratch& s, const Sizes& of) : weights(s.take<float>(of.rows * of.slots)), tops(s.take<float>(of.rows * of.strips())) {}
  };

  /// What the tasks of a head that is split share.
  struct HeadParts {
    Sizes size;
    Scratch scratch;
    Kept kept;

    HeadParts(const Sizes& s, Scratch bytes) : size(s), scratch(bytes), kept(s.mass ? Kept(scratch, s) : Kept{}) {}
    Sums sums(index_t p) const {
      Scratch from = scratch;
      for (index_t i = 0; i < p; ++i) Sums(from, size.rows, size.value_width);
      return Sums(from, size.rows, size.value_width);
    }
  };

  /// Adds the sums of a later part.
  static void join(Sums& a, const Sums& b, index_t rows) {
    for (index_t r = 0; r < rows; ++r) {
      const float top = std::max(a.max[r], b.max[r]);
      const bool none = top == -std::numeric_limits<float>::infinity();  // sums are then zeros, or NaN
      const float of_a = none ? 1.0f : std::exp(a.max[r] - top), of_b = none ? 1.0f : std::exp(b.max[r] - top);
      a.max[r] = top;
      a.sum[r] = a.sum[r] * of_a + b.sum[r] * of_b;
      float* out = a.out + r * a.width;
      const float* more = b.out + r * a.width;
      for (index_t d = 0; d < a.width; ++d) out[d] = out[d] * of_a + more[d] * of_b;
    }
  }

  struct Block {
    Sizes size;
    Scratch scratch;
    float *queries, *weights, *tops = nullptr, *spare = nullptr;
    index_t width, rows = 0, last = 0;
    index_t visible[block_rows];
    const float* awaited = nullptr;  ///< sums that are added to when all slots are read: cold, and asked for while these come

    Block(const Sizes& s, Scratch bytes, bool split)
        : size(s), scratch(bytes), queries(scratch.take<float>(s.rows * s.query_width)), width(std::min(strip, s.slots)) {
      if (s.mass) spare = scratch.take<float>(s.rows * strip);
      if (s.mass && !split) keep_in({scratch, s});
      else weights = scratch.take<float>(s.rows * width);
    }

    /// Keeps the weights of all slots, for a mass.
    void keep_in(const Kept& kept) { weights = kept.weights, tops = kept.tops, width = size.slots; }

    /// Rows [first, first + count) of the head's queries; row f is token f / group, group member f % group.
    template <class Head>
    void run(const AttendRequest& request, const AttentionSums& counted, Head& head, index_t kv_head, index_t group, index_t first, index_t n) {
      Scratch rest = scratch;
      Sums sums(rest, size.rows, size.value_width), later(rest, size.rows, size.value_width);
      begin(request, head, kv_head * group, group, first, n);
      if (counted) awaited = counted.sums.row(kv_head);
      typename Head::Cursor key_at{}, value_at{};
      for (index_t at = 0; at == 0 || at < last; at += part) {
        Sums& now = at == 0 ? sums : later;
        start(now, head, at == 0, request.out.extent[2]);
        add(head, now, key_at, value_at, at);
        if (at > 0) join(sums, later, rows);
      }
      finish(request, head, sums, kv_head * group, group, first);
      if (counted) count(request, counted, sums, kv_head);
    }

    /// How many slots each row sees.
    template <class Head>
    void see(const AttendRequest& request, const Head& head, index_t group, index_t first, index_t count) {
      rows = count, last = 0;
      for (index_t r = 0; r < rows; ++r) {
        visible[r] = std::clamp<index_t>(visible_slots(head, (first + r) / group, request.queries.extent[1]), 0, head.slots());
        last = std::max(last, visible[r]);
      }
    }

    template <class Head>
    void begin(const AttendRequest& request, Head& head, index_t q_head, index_t group, index_t first, index_t count) {
      const index_t dim = request.queries.extent[2];
      see(request, head, group, first, count);
      for (index_t r = 0; r < rows; ++r) {
        const index_t token = (first + r) / group, member = (first + r) % group;
        float* q = queries + r * size.query_width;
        copy(&request.queries(q_head + member, token, 0), request.queries.stride[2], dim, q, 1);
        head.prepare_query(q, token, visible[r] - 1);
        cpu::row_ops().scale(q, dim, request.softmax_scale);
      }
      if constexpr (requires { head.begin_queries(RowBlock<float>{}); }) head.begin_queries({queries, rows, size.query_width});
      query_dim = dim;
    }

    /// Nothing summed yet; the summary slot counts with the first part.
    template <class Head>
    void start(Sums& sums, const Head& head, bool with_summary, index_t value_dim) const {
      std::fill_n(sums.max, rows, -std::numeric_limits<float>::infinity());
      std::fill_n(sums.sum, rows, 0.0f);
      std::fill_n(sums.out, rows * size.value_width, 0.0f);
      const SummarySlot summary = summary_of(head);
      for (index_t r = 0; with_summary && summary.key != nullptr && r < rows; ++r) {
        sums.max[r] = cpu::dot(queries + r * size.query_width, summary.key, query_dim) + summary.bias;
        sums.sum[r] = 1.0f;
        std::copy_n(summary.value, value_dim, sums.out + r * size.value_width);
      }
    }

    /// Slots [first, first + part) as far as they are seen.
    template <class Head>
    void add(Head& head, Sums& sums, typename Head::Cursor& keys, typename Head::Cursor& values, index_t first) {
      const SlotScalars scalars = head.scalars();
      const index_t end = std::min(last, first + part);
      for (index_t at = first; at < end; at += strip) {
        const index_t n = std::min(strip, end - at);
        for (index_t i = at; awaited != nullptr && i < at + n; i += 16) __builtin_prefetch(awaited + i, 1, 2);
        const RowBlock<float> w{tops != nullptr ? weights + at : weights, rows, width};
        head.key_scores(keys, n, {queries, rows, size.query_width}, w, at);
        if constexpr (requires { head.hide(at, at, n, w.data); })
          for (index_t r = 0; r < rows; ++r) head.hide(visible[r], at, n, w.data + r * width);
        for (index_t r = 0; r < rows; ++r) softmax_strip(w.data + r * width, sums, r, at, n, scalars);
        for (index_t r = 0; tops != nullptr && r < rows; ++r) tops[at / strip * size.rows + r] = sums.max[r];
        const RowBlock<float> scaled = scalars.value_scale == nullptr ? w : scale_values(w, at, n, scalars.value_scale);
        head.add_values(values, n, {scaled.data, rows, scaled.step}, {sums.out, rows, size.value_width});
      }
    }

    template <class Head>
    void finish(const AttendRequest& request, Head& head, Sums& sums, index_t q_head, index_t group, index_t first) {
      const index_t tokens = request.queries.extent[1], value_dim = request.out.extent[2];
      const bool summary = summary_of(head).key != nullptr;
      if constexpr (requires { head.finish_values(RowBlock<float>{}); }) head.finish_values({sums.out, rows, size.value_width});
      for (index_t r = 0; r < rows; ++r) {
        const index_t token = (first + r) / group, member = (first + r) % group;
        float* from = sums.out + r * size.value_width;
        cpu::row_ops().scale(from, value_dim, inverse(sums, r));
        if (visible[r] == 0 && !summary) std::fill_n(from, value_dim, 0.0f);
        copy(from, 1, value_dim, &request.out(q_head + member, token, 0), request.out.stride[2]);
        if (request.lse.data != nullptr) request.lse(q_head + member, token) = sums.max[r] + std::log(sums.sum[r]);
      }
      if (request.mass.data == nullptr) return;
      const index_t uncounted = std::clamp<index_t>((tokens - request.mass_rows) * group - first, 0, rows);
      for (index_t at = 0; at < last; at += strip) add_mass(sums, uncounted, at, std::min(strip, last - at), request.mass.row(q_head / group) + at);
    }

    /// Adds the mass of the block's rows, which are all there are, to the head's sums. It is itself summed from zero, and only
    /// then multiplied and added, as a mass that was written would be.
    void count(const AttendRequest& request, const AttentionSums& counted, const Sums& sums, index_t kv_head) const {
      const index_t tokens = request.queries.extent[1], uncounted = std::max<index_t>(0, tokens - request.mass_rows);
      float *mass = spare, *to = counted.sums.row(kv_head);
      for (index_t at = 0; at < last; at += strip) {
        const index_t n = std::min(strip, last - at);
        std::fill_n(mass, n, 0.0f);
        add_mass(sums, uncounted * (rows / tokens), at, n, mass);
        SlotNumbers<Cpu>::mix_row(mass, n, counted.scale, 1.0f, to + at);
      }
    }

   private:
    index_t query_dim = 0;

    static void copy(const float* from, index_t step, index_t n, float* to, index_t to_step) {
      if (step == 1 && to_step == 1) std::copy_n(from, n, to);
      else
        for (index_t i = 0; i < n; ++i) to[i * to_step] = from[i * step];
    }

    static float inverse(const Sums& sums, index_t r) { return sums.sum[r] > 0.0f ? 1.0f / sums.sum[r] : 0.0f; }

    /// Adds what the rows from `from` on give the n slots of the strip that begins at `first`, those that see as much at once. A
    /// weight is relative to the maximum that its strip knew; where that is infinite, the last one may be the same, and their
    /// difference is no number.
    void add_mass(const Sums& sums, index_t from, index_t first, index_t n, float* out) const {
      const float* weight[block_rows];
      float share[block_rows];
      for (index_t r = from, end = from; r < rows; r = end) {
        for (; end < rows && visible[end] == visible[r]; ++end) {
          const float inv = inverse(sums, end), top = tops[first / strip * size.rows + end];
          share[end] = top == sums.max[end] ? inv : std::exp(top - sums.max[end]) * inv;
          weight[end] = weights + end * width + first;
        }
        cpu::number_ops().add_scaled(weight + r, share + r, end - r, std::min(n, visible[r] - first), out);
      }
    }

    /// The weights times the scales of the values; weights that are kept stay what they are.
    RowBlock<float> scale_values(const RowBlock<float>& w, index_t at, index_t n, const float* scale) const {
      const RowBlock<float> to = tops != nullptr ? RowBlock<float>{spare, rows, strip} : w;
      for (index_t r = 0; r < rows; ++r) {
        const index_t seen = std::clamp<index_t>(visible[r] - at, 0, n);
        for (index_t i = 0; i < seen; ++i) to.data[r * to.step + i] = w.data[r * w.step + i] * scale[at + i];
        std::fill(to.data + r * to.step + seen, to.data + r * to.step + n, 0.0f);
      }
      return to;
    }

    /// Turns a strip of scores into weights, in place, and moves the running maximum and sum.
    void softmax_strip(float* l, Sums& sums, index_t r, index_t at, index_t n, const SlotScalars& scalars) {
      const index_t seen = std::clamp<index_t>(visible[r] - at, 0, n);
      if (scalars.key_scale != nullptr)
        for (index_t i = 0; i < seen; ++i) l[i] *= scalars.key_scale[at + i];
      if (scalars.bias != nullptr)
        for (index_t i = 0; i < seen; ++i) l[i] += scalars.bias[at + i];
      const cpu::RowOps& ops = cpu::row_ops();
      const float top = ops.largest(l, seen, sums.max[r]);
      if (top == -std::numeric_limits<float>::infinity()) {
        // Nothing visible yet, or every bias so far is -inf; NaN logits end here too and stay NaN.
        for (index_t i = 0; i < n; ++i) l[i] = i < seen && l[i] != l[i] ? l[i] : 0.0f;
        for (index_t i = 0; i < seen; ++i) sums.sum[r] += l[i];
        return;
      }
      if (top > sums.max[r]) {
        const float shrink = std::exp(sums.max[r] - top);
        sums.sum[r] *= shrink;
        ops.scale(sums.out + r * size.value_width, size.value_width, shrink);
        sums.max[r] = top;
      }
      sums.sum[r] += ops.exp_below(l, seen, top, l);
      std::fill(l + seen, l + n, 0.0f);
    }
  };
};

}  // namespace kvcondense::prim
