#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/backend/cpu/slot_tiles.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/output_error.hpp>

namespace kvcondense::prim {

template <>
struct OutputError<Cpu> {
  static Status run(Context<Cpu>& ctx, const SlotRows<Cpu>& values, const Ends* skip, HeadOutput of, RaggedView<float> scores) {
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      Head head(values, h, scores.length(h), skip == nullptr ? Ends{} : skip[h], of, scores.row(h));
      head.sum_up();
      head.each_error([&](index_t j, const float*, float e) { scores.row(h)[j] = e; });
    });
    return Status::ok;
  }

  static Status drop(Context<Cpu>& ctx, const SlotRows<Cpu>& values, RaggedView<const float> weights, const Ends* always,
                     HeadOutput of, const index_t* total, RaggedView<float> left, RaggedView<std::int32_t> slots,
                     index_t* count, index_t* nan = nullptr) {
    ctx.parallel(weights.heads, [&](index_t h, index_t) {
      const index_t n = weights.length(h);
      std::int32_t* out = slots.row(h);
      count[h] = n;
      if (total[h] >= n) return std::iota(out, out + n, 0);
      std::copy_n(weights.row(h), n, left.row(h));
      Head head(values, h, n, always == nullptr ? Ends{} : always[h], of, left.row(h));
      head.sum_up();
      index_t bad = 0;
      for (index_t j = head.first; j < head.last; ++j) bad += std::isnan(head.weight[j]);
      const index_t most = std::max(total[h], n - (head.last - head.first));
      for (; count[h] > most; --count[h]) head.remove_least();
      for (index_t j = 0; j < n; ++j)
        if (!head.competes(j) || !head.gone(j)) *out++ = static_cast<std::int32_t>(j);
      if (nan != nullptr && bad > 0) std::atomic_ref<index_t>(*nan).fetch_add(bad);
    });
    return Status::ok;
  }

 private:
  struct Head {
    const SlotRows<Cpu>& values;
    index_t head, dim, slots, first, last;
    HeadOutput of;
    float* weight;  ///< NaN: in no sum; below 0: has left
    double all = 0.0, rows = 0.0;
    double sum[max_head_dim] = {};
    float centre[max_head_dim];

    Head(const SlotRows<Cpu>& v, index_t h, index_t n, Ends ends, HeadOutput o, float* w)
        : values(v), head(h), dim(v.dim()), slots(n), first(ends.within(n).prefix), last(n - ends.within(n).suffix), of(o), weight(w) {}

    bool gone(index_t j) const { return weight[j] < 0.0f; }
    bool competes(index_t j) const { return j >= first && j < last; }

    /// use(first slot, values, how many) for tiles of the slots [low, high) in which some are still there.
    template <class F>
    void each_tile(index_t low, index_t high, F&& use) const {
      const auto wanted = [&](index_t at, index_t n) { return std::any_of(weight + at, weight + at + n, [](float w) { return !(w < 0.0f); }); };
      cpu::for_slot_tiles(values, head, low, high, use, wanted);
    }

    void sum_up() {
      each_tile(of.ends ? 0 : first, of.ends ? slots : last, [&](index_t at, const float* x, index_t n) {
        float square[cpu::most_tile_rows];
        cpu::row_ops().squares(x, n, dim, square);
        cpu::WeightedRows counted;
        for (index_t i = 0; i < n; ++i) {
          float& w = weight[at + i];
          if (gone(at + i)) continue;
          const bool finite = std::isfinite(square[i]);
          if (!finite && competes(at + i)) w = std::numeric_limits<float>::quiet_NaN();
          if (finite && !std::isnan(w)) count(counted, at + i, x + i * dim, 1.0);
        }
        counted.add_to(sum, dim);
      });
      find_centre();
    }
    void count(cpu::WeightedRows& counted, index_t j, const float* x, double sign) {
      const double w = static_cast<double>(weight[j]);
      all += sign * w, rows += sign;
      counted.take(x, sign * (of.fast ? 1.0 : w));
    }
    void find_centre() {
      const double whole = of.fast ? rows : all;
      for (index_t d = 0; d < dim; ++d) centre[d] = whole > 0.0 ? static_cast<float>(sum[d] / whole) : 0.0f;
    }

    float error(index_t j, float square) const {
      const double w = static_cast<double>(weight[j]);
      if (std::isnan(weight[j]) || w == 0.0) return weight[j];
      return static_cast<float>(w / std::max(all - w, all * 1e-6)) * std::sqrt(square);
    }
    /// use(slot, value, error) for every slot between the ends that is still there.
    template <class F>
    void each_error(F&& use) const {
      each_tile(first, last, [&](index_t at, const float* x, index_t n) {
        float square[cpu::most_tile_rows];
        cpu::number_ops().square_distances(centre, x, n, dim, square);
        for (index_t i = 0; i < n; ++i)
          if (!gone(at + i)) use(at + i, x + i * dim, error(at + i, square[i]));
      });
    }
    void remove_least() {
      index_t least = -1;
      float lowest = 0.0f;
      float row[max_head_dim];
      each_error([&](index_t j, const float* x, float e) {
        const bool lower = least < 0 || (std::isnan(lowest) ? std::isnan(e) : !(e > lowest));  // NaN is lowest
        if (!lower) return;
        least = j, lowest = e;
        std::copy_n(x, dim, row);
      });
      if (!std::isnan(weight[least])) {
        cpu::WeightedRows leaves;
        count(leaves, least, row, -1.0);
        leaves.add_to(sum, dim);
        find_centre();
      }
      weight[least] = -1.0f;
    }
  };
};

}  // namespace kvcondense::prim
