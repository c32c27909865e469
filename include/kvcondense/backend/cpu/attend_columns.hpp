#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/backend/cpu/attend.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/attend_columns.hpp>

namespace kvcondense::prim {

template <>
struct AttendColumns<Cpu> {
  static constexpr index_t read_rows = 32;  ///< query rows that one read of the keys serves
  static constexpr index_t strip = Attend<Cpu>::strip;
  static constexpr index_t most_kept = 8192;  ///< slots whose logits are kept at most: a second-level cache holds them

  /// `width`: of a row of queries, see `query_width`; 0: head_dim. `slots`: of a head; logits are needed twice, and keys are
  /// multiplied once where there is room for them (0: none is asked for).
  static std::size_t workspace_bytes(index_t workers, const CacheShape& shape, index_t rows, index_t width = 0, index_t slots = 0) {
    return Scratch::align + static_cast<std::size_t>(workers) * worker_bytes(shape, rows, width, std::min(slots, most_kept));
  }

  template <class Heads>
  static Status run(Context<Cpu>& ctx, const ColumnRequest& request, const CacheShape& shape, Heads&& heads) {
    const float last = temperature(request, std::max<index_t>(0, request.rows - 1));
    if (!(request.temperature > 0.0f && last > 0.0f)) return Status::invalid_argument;
    constexpr bool parts = requires { heads(index_t{}).below(index_t{}); };
    if (!parts && request.part.last > 0) return Status::not_supported;
    const index_t width = widest_query(heads, shape.kv_heads, shape.head_dim);
    index_t most = 0;
    for (index_t h = 0; h < shape.kv_heads; ++h) most = std::max(most, heads(h).slots());
    most = std::min((most + strip - 1) / strip * strip, most_kept);
    const auto need = [&](index_t slots) { return workspace_bytes(ctx.workers(), shape, request.rows, width, slots); };
    while (most > 0 && ctx.workspace().size() < need(most)) most -= strip;
    if (ctx.workspace().size() < need(most)) return Status::workspace_too_small;
    const std::size_t one = worker_bytes(shape, request.rows, width, most);
    Scratch all(ctx.workspace());
    std::byte* base = all.take<std::byte>(static_cast<index_t>(static_cast<std::size_t>(ctx.workers()) * one));
    ctx.parallel(shape.kv_heads, [&](index_t h, index_t worker) {
      auto head = heads(h);
      const index_t group = shape.group(), tokens = block_tokens(group, request.rows);
      const index_t series = request.group == GroupReduce::none ? group : 1;
      Block block{request, shape, h, head.slots(), width,
                  request.out.data + request.out.offset[h] * series};
      if (!request.add) std::fill_n(block.out, head.slots() * series, block.logs() ? -std::numeric_limits<float>::infinity() : 0.0f);
      if constexpr (parts)
        if (request.part.last > 0) block.find_part(head);
      block.scratch(Scratch({base + static_cast<std::size_t>(worker) * one, one}), tokens * group, most);
      const index_t counted = rows_of(request);
      for (index_t first = 0; first < counted; first += tokens) block.run(head, first, std::min(tokens, counted - first));
      if (request.row == RowReduce::seen_mean) block.divide_by_rows(head);
    });
    return Status::ok;
  }

 private:
  static float temperature(const ColumnRequest& request, index_t row) {
    return request.temperature + request.warming * static_cast<float>(row);
  }

  /// Rows that count, and the i-th of them.
  static index_t rows_of(const ColumnRequest& request) {
    return request.chosen.empty() ? request.rows : static_cast<index_t>(request.chosen.size());
  }
  static index_t row_at(const ColumnRequest& request, index_t i) {
    return request.chosen.empty() ? i : request.chosen[static_cast<std::size_t>(i)];
  }

  static std::size_t worker_bytes(const CacheShape& shape, index_t rows, index_t width, index_t kept) {
    const index_t q = block_tokens(shape.group(), rows) * shape.group();
    return Scratch::bytes_for<float>(q * std::max(width, shape.head_dim)) + Scratch::bytes_for<float>(q * strip) +
           Scratch::bytes_for<float>(q * ((kept + strip - 1) / strip * strip)) + 2 * Scratch::bytes_for<float>(q);
  }

  /// Whole groups share a block, since their probabilities meet.
  static index_t block_tokens(index_t group, index_t rows) {
    return std::max<index_t>(1, std::min(rows, read_rows / group));
  }

  struct Block {
    const ColumnRequest& request;
    const CacheShape& shape;
    index_t kv_head;
    index_t slots;
    index_t width;
    float* out;
    index_t sinks_end = 0, part_begin = 0, part_end = 0, own_begin = 0;  ///< slots of request.part
    float *queries = nullptr, *logits = nullptr, *kept = nullptr, *top = nullptr, *sum = nullptr;
    index_t room = 0;  ///< slots whose logits fit `kept`, whole strips
    index_t visible[read_rows] = {}, counted[read_rows] = {};  ///< slots that a token of the block may see, and that count

    void scratch(Scratch s, index_t q, index_t most) {
      room = most;
      queries = s.take<float>(q * width);
      logits = s.take<float>(q * strip);
      kept = s.take<float>(q * room);
      top = s.take<float>(q);
      sum = s.take<float>(q);
    }

    template <class Head>
    void find_part(const Head& head) {
      const ColumnPart& p = request.part;
      sinks_end = head.below(p.sinks), part_begin = head.below(p.first), part_end = head.below(p.last);
      own_begin = head.below(head.row_token(0));
      for (index_t j = part_begin; j < part_end; ++j) out[j] = std::max(out[j], std::numeric_limits<float>::min());
    }
    void hide(float* l, index_t first, index_t n) const {
      for (index_t i = 0; i < n; ++i) {
        const index_t j = first + i;
        const bool seen = j < sinks_end || (j >= part_begin && j < part_end) || j >= own_begin;
        if (!seen) l[i] = -std::numeric_limits<float>::infinity();
      }
    }

    /// Whether a strip of hidden slots adds nothing to anything.
    bool passes(index_t first, index_t n) const {
      const bool adds = request.row == RowReduce::sum || request.row == RowReduce::mean || request.row == RowReduce::max;
      return request.part.last > 0 && adds && first >= sinks_end && first + n <= own_begin &&
             (first + n <= part_begin || first >= part_end);
    }

    /// Of the slots that a row may see.
    index_t counts(index_t all) const { return request.past ? std::clamp<index_t>(slots - request.rows, 0, all) : all; }

    /// Query tokens [first, first + tokens) of the window; row r of the block is token r / group.
    template <class Head>
    void run(Head& head, index_t first, index_t tokens) {
      const index_t group = shape.group(), q = tokens * group, dim = shape.head_dim;
      for (index_t r = 0; r < q; ++r) {
        head.load_query(row_at(request, first + r / group), r % group, queries + r * width);
        for (index_t d = 0; d < dim; ++d) queries[r * width + d] *= shape.softmax_scale;
        top[r] = -std::numeric_limits<float>::infinity();
        sum[r] = 0.0f;
      }
      if constexpr (requires { head.begin_queries(RowBlock<float>{}); }) head.begin_queries({queries, q, width});
      index_t last = 0;
      for (index_t t = 0; t < tokens; ++t) {
        visible[t] = head.visible(row_at(request, first + t)), counted[t] = counts(visible[t]);
        last = std::max(last, counted[t]);
      }

      typename Head::Cursor cursor{};
      if (logs()) {
        each_strip(head, first, tokens, {0, last}, cursor, [&](index_t r, index_t s, float* l, index_t n) {
          if (r % group == group - 1) decay(mean_log(l, n), n, out + s);
        });
        return;
      }
      const index_t again = std::min(last, room);  // the first slot whose keys are multiplied once more
      each_strip(head, first, tokens, {0, again}, cursor, [&](index_t r, index_t, const float* l, index_t n) { normalise(r, l, n); });
      typename Head::Cursor behind = cursor;
      each_strip(head, first, tokens, {again, last}, behind, [&](index_t r, index_t, const float* l, index_t n) { normalise(r, l, n); });
      const auto weigh_in = [&](index_t r, index_t at, float* l, index_t n) {
        const float inv = sum[r] > 0.0f ? 1.0f / (sum[r] * divisor(row_at(request, first + r / group))) : 0.0f;
        cpu::row_ops().exp_below(l, n, top[r], l);
        cpu::row_ops().scale(l, n, inv);
        if (request.part.last > 0)
          for (index_t i = 0; i < n; ++i)
            if (at + i < part_begin || at + i >= part_end) l[i] = 0.0f;
        const index_t all = counted[r / group];
        if (request.group == GroupReduce::none) add(all, l, n, at, out + (r % group) * slots);
        else if (request.group == GroupReduce::max_logit) add(all, l, n, at, out);
        else if (r % group == group - 1) add(all, reduce(l, n), n, at, out);
      };
      const index_t step = request.group == GroupReduce::max_logit ? group : 1;
      for (index_t s = 0; s < again; s += strip)
        for (index_t r = 0; r < q && !passes(s, std::min(strip, last - s)); r += step)
          weigh_in(r, s, kept + s * q + r * strip, std::clamp<index_t>(counted[r / group] - s, 0, std::min(strip, last - s)));
      each_strip(head, first, tokens, {again, last}, cursor, weigh_in);
    }

    struct Range {
      index_t first, last;  ///< slots; strips begin at multiples of `strip`
    };
    /// Calls use(row, first slot, logits, count) for every row and strip, a group's rows in order. `at`: of the first slot, and
    /// then behind the last. Logits stay in `kept`, q rows a strip, where there is room for them.
    template <class Head, class F>
    void each_strip(Head& head, index_t first, index_t tokens, Range range, typename Head::Cursor& at, F&& use) {
      const index_t group = shape.group(), q = tokens * group, last = range.last;
      for (index_t s = range.first; s < last; s += strip) {
        const index_t n = std::min(strip, last - s);
        float* const to = s < room && !logs() ? kept + s * q : logits;
        if constexpr (requires { head.skip(at, n); })
          if (passes(s, n)) {
            head.skip(at, n);
            continue;
          }
        typename Head::Cursor next = at;
        for (index_t r = 0; r < q; r += read_rows) {
          next = at;
          const index_t m = std::min(read_rows, q - r);
          head.key_scores(next, n, {queries + r * width, m, width}, {to + r * strip, m, strip}, s);
        }
        at = next;
        for (index_t r = 0; r < q; ++r) {
          const index_t t = row_at(request, first + r / group), here = std::clamp<index_t>(counted[r / group] - s, 0, n);
          float* l = to + r * strip;
          if constexpr (requires { head.scalars(); }) weigh(head.scalars(), l, s, here, logs());
          if constexpr (requires { head.hide(t, s, here, l); }) head.hide(visible[r / group], s, here, l);
          if (request.part.last > 0) hide(l, s, here);
          if (request.seed != 0) add_noise(head, r % group, t, s, l, here);
          if (const float heat = temperature(request, t); heat != 1.0f)
            for (index_t i = 0; i < here; ++i) l[i] /= heat;
          if (request.group != GroupReduce::max_logit) {
            use(r, s, l, here);
          } else {
            float* lead = to + (r - r % group) * strip;
            for (index_t i = 0; i < here; ++i) lead[i] = std::max(lead[i], l[i]);
            if (r % group == group - 1) use(r - r % group, s, lead, here);
          }
        }
      }
    }

    static void weigh(const SlotScalars& scalars, float* l, index_t first, index_t n, bool key_alone) {
      for (index_t i = 0; i < n && scalars.key_scale != nullptr; ++i) l[i] *= scalars.key_scale[first + i];
      for (index_t i = 0; i < n && scalars.bias != nullptr && !key_alone; ++i) l[i] += scalars.bias[first + i];
    }

    /// Infinite where the row's shares are none.
    float divisor(index_t row) const {
      if (request.divide == nullptr) return 1.0f;
      return request.divide[row] > 0.0f ? request.divide[row] : std::numeric_limits<float>::infinity();
    }

    bool logs() const { return request.row == RowReduce::log_decay; }

    static float add_logs(float a, float b) {
      const float top = std::max(a, b);
      return top == -std::numeric_limits<float>::infinity() ? top : top + std::log(std::exp(a - top) + std::exp(b - top));
    }
    /// The logarithm of the mean of exp over a group, of which `l` is the last row, in the place of its first.
    float* mean_log(float* l, index_t n) const {
      const index_t group = shape.group();
      float* lead = l - (group - 1) * strip;
      for (index_t g = 1; g < group; ++g)
        for (index_t i = 0; i < n; ++i) lead[i] = add_logs(lead[i], lead[g * strip + i]);
      for (index_t i = 0; i < n; ++i) lead[i] -= std::log(static_cast<float>(group));
      return lead;
    }
    void decay(const float* l, index_t n, float* to) const {
      const float stays = std::log(request.decay), joins = std::log(1.0f - request.decay);
      for (index_t i = 0; i < n; ++i) to[i] = add_logs(to[i] + stays, l[i] + joins);
    }

    /// Takes logits into the row's sum.
    void normalise(index_t r, const float* l, index_t n) {
      float shares[strip];
      const float most = cpu::row_ops().largest(l, n, top[r]);
      if (most == -std::numeric_limits<float>::infinity()) return;  // nothing of this strip is seen
      if (most > top[r]) sum[r] *= std::exp(top[r] - most), top[r] = most;
      sum[r] += cpu::row_ops().exp_below(l, n, top[r], shares);
    }

    /// The probabilities of a group, of which `l` is the last row, in the place of its first.
    float* reduce(float* l, index_t n) const {
      const index_t group = shape.group();
      float* lead = l - (group - 1) * strip;
      for (index_t g = 1; g < group; ++g)
        for (index_t i = 0; i < n; ++i) {
          const float p = lead[g * strip + i];
          lead[i] = request.group == GroupReduce::max ? std::max(lead[i], p) : lead[i] + p;
        }
      if (request.group == GroupReduce::mean)
        for (index_t i = 0; i < n; ++i) lead[i] /= static_cast<float>(group);
      return lead;
    }

    /// The probabilities of slots [at, at + n), into the numbers of all slots; `all`: how many count for the row.
    void add(index_t all, const float* p, index_t n, index_t at, float* to) const {
      if (request.band > 0) {
        const index_t far = std::clamp<index_t>(all - request.band - at, 0, n);
        p += far, n -= far, at += far;
      }
      to += at;
      switch (request.row) {
        case RowReduce::sum:
        case RowReduce::seen_mean:
          for (index_t i = 0; i < n; ++i) to[i] += p[i];
          break;
        case RowReduce::mean:
          for (index_t i = 0; i < n; ++i) to[i] += p[i] / static_cast<float>(rows_of(request));
          break;
        case RowReduce::max:
          for (index_t i = 0; i < n; ++i) to[i] = std::max(to[i], p[i]);
          break;
        case RowReduce::low_count: {
          const float share = 1.0f / static_cast<float>(all);
          for (index_t i = 0; i < n; ++i) to[i] += p[i] >= share ? 0.0f : 1.0f;
          break;
        }
        case RowReduce::log_decay: break;  // never comes here
      }
    }

    /// What makes sums means over the rows that see a slot: older slots are seen by more.
    template <class Head>
    void divide_by_rows(const Head& head) const {
      const index_t n = rows_of(request), series = request.group == GroupReduce::none ? shape.group() : 1;
      index_t from = 0;
      for (index_t i = 0; i < n; ++i) {
        const index_t end = std::min(slots, counts(head.visible(row_at(request, i))));
        for (index_t g = 0; g < series; ++g)
          for (index_t j = from; j < end; ++j) out[g * slots + j] /= static_cast<float>(n - i);
        from = std::max(from, end);
      }
    }

    template <class Head>
    void add_noise(const Head& head, index_t member, index_t row, index_t first, float* l, index_t n) const {
      const auto q_head = static_cast<std::uint64_t>(kv_head * shape.group() + member);
      const std::uint64_t key = random_bits(request.seed + q_head, static_cast<std::uint64_t>(head.row_token(row)));
      for (index_t i = 0; i < n; ++i) {
        const float u = random_uniform(key, static_cast<std::uint64_t>(head.token(first + i))) + 0x1p-25f;  // never 0 or 1
        l[i] -= std::log(-std::log(u));
      }
    }
  };
};

}  // namespace kvcondense::prim
