#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <numeric>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/top_k.hpp>

namespace kvcondense::prim {
namespace cpu {

inline RowCutoff row_cutoff(const float* scores, index_t n, index_t k) {
  if (k <= 0) return {};
  return rank_ops().cutoff(scores, n, k);
}

/// What leaves when `leave` of n scores do, worst first.
inline Lowest lowest_scores(const float* scores, index_t n, index_t leave, Ties order) {
  Lowest low;
  low.wanted = leave;
  rank_ops().lowest(scores, n, 0, order == Ties::first, low);
  return low;
}

}  // namespace cpu

/// Threads share the rows.
template <>
struct TopK<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<const float> scores, const Ends* always,
                    const index_t* total, RaggedView<std::int32_t> slots, index_t* count,
                    index_t* nan = nullptr, Ties order = Ties::first, Ends* kept_ends = nullptr) {
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const index_t n = scores.length(h);
      const Ends ends = always == nullptr ? Ends{} : always[h].within(n);
      const float* s = scores.row(h);
      std::int32_t* out = slots.row(h);
      const auto keep_ends = [&](Ends e) {
        if (kept_ends != nullptr) return void(kept_ends[h] = e);
        std::iota(out, out + e.prefix, 0);
        std::iota(out + e.prefix, out + e.size(), static_cast<std::int32_t>(n - e.suffix));
      };
      count[h] = n;
      if (total[h] >= n) return keep_ends({n, 0});

      const index_t last = n - ends.suffix;
      const index_t k = std::clamp<index_t>(total[h] - ends.size(), 0, last - ends.prefix);
      count[h] = ends.size() + k;
      index_t bad = 0;
      const auto report = [&] {
        if (nan != nullptr && bad > 0) std::atomic_ref<index_t>(*nan).fetch_add(bad);
      };
      if (const index_t leave = n - count[h]; leave <= cpu::Lowest::most && last > ends.prefix) {
        cpu::Lowest low = cpu::lowest_scores(s + ends.prefix, last - ends.prefix, leave, order);
        if (low.key[0] == 0) bad = std::count_if(s + ends.prefix, s + last, [](float x) { return std::isnan(x); });
        std::sort(low.place, low.place + leave);
        if (leave == 1) {
          const index_t gone = ends.prefix + low.place[0];
          keep_ends({gone, n - 1 - gone});
        } else {
          for (index_t i = 0, at = 0; i <= leave; ++i) {
            const index_t gone = i < leave ? ends.prefix + low.place[i] : n;
            std::iota(out, out + (gone - at), static_cast<std::int32_t>(at));
            out += gone - at, at = gone + 1;
          }
        }
        return report();
      }
      const RowCutoff cut = cpu::row_cutoff(s + ends.prefix, last - ends.prefix, k);
      std::iota(out, out + ends.prefix, 0);
      out += ends.prefix;
      if (order == Ties::first) out += cpu::rank_ops().pick(s + ends.prefix, last - ends.prefix, static_cast<std::int32_t>(ends.prefix), cut, out, bad);
      else out = pick_last(s, ends.prefix, last, cut, out, bad);
      std::iota(out, out + ends.suffix, static_cast<std::int32_t>(last));
      report();
    });
    return Status::ok;
  }

 private:
  /// Of equal scores the first ones leave.
  static std::int32_t* pick_last(const float* s, index_t first, index_t last, RowCutoff cut, std::int32_t* out, index_t& bad) {
    index_t leave = -cut.ties;
    for (index_t i = first; i < last; ++i) leave += rank_bits(s[i]) == cut.bits;
    for (index_t i = first; i < last; ++i) {
      const std::uint32_t key = rank_bits(s[i]);
      bad += key == 0;
      const bool stays = key > cut.bits || (key == cut.bits && leave-- <= 0);
      *out = static_cast<std::int32_t>(i);  // there is room: at least one slot leaves
      out += stays;
    }
    return out;
  }
};

/// One thread: rows are counted in order.
template <>
struct TopKCounts<Cpu> {
  static Status run(Context<Cpu>&, RaggedView<const float> scores, const Ends* skip,
                    const index_t* own, index_t k, index_t* count, Scratch& scratch, bool strict = false) {
    auto* safe = scratch.take<RowCutoff>(scores.heads);
    if (safe == nullptr) return Status::workspace_too_small;
    index_t left = 0, fewest = 0;
    for (index_t h = 0; h < scores.heads; ++h) {
      const index_t n = middle(scores, skip, h);
      count[h] = own == nullptr ? 0 : std::clamp<index_t>(own[h], 0, n);
      left += n - count[h];
      if (count[h] > 0) fewest = fewest == 0 ? n - count[h] + 1 : std::min(fewest, n - count[h] + 1);
    }
    k = std::min(k, left);
    if (k <= 0) return Status::ok;
    // Few that leave, and no row so short that its own winners were among them.
    if (const index_t leave = left - k; !strict && leave <= cpu::Lowest::most && (fewest == 0 || leave < fewest)) {
      leave_out(scores, skip, leave, count);
      return Status::ok;
    }
    for (index_t h = 0; h < scores.heads; ++h) safe[h] = cpu::row_cutoff(begin(scores, skip, h), middle(scores, skip, h), count[h]);
    const RowCutoff cut = find_cutoff(k, left, [&](auto&& use) {
      for (index_t h = 0; h < scores.heads; ++h) unsafe(scores, skip, safe[h], h, use);
    });
    index_t ties = strict && k < left ? 0 : cut.ties;
    for (index_t h = 0; h < scores.heads; ++h)
      unsafe(scores, skip, safe[h], h, [&](std::uint32_t key) {
        count[h] += key > cut.bits || (key == cut.bits && ties-- > 0);
      });
    return Status::ok;
  }

 private:
  static Ends ends(RaggedView<const float> scores, const Ends* skip, index_t h) {
    return skip == nullptr ? Ends{} : skip[h].within(scores.length(h));
  }
  static index_t middle(RaggedView<const float> scores, const Ends* skip, index_t h) {
    return scores.length(h) - ends(scores, skip, h).size();
  }
  static const float* begin(RaggedView<const float> scores, const Ends* skip, index_t h) {
    return scores.row(h) + ends(scores, skip, h).prefix;
  }

  /// All places but the last `leave` of all rows. Rows are shown last first, and from the back: of equal scores those leave
  /// that come first then.
  static void leave_out(RaggedView<const float> scores, const Ends* skip, index_t leave, index_t* count) {
    cpu::Lowest low;
    low.wanted = leave;
    for (index_t h = scores.heads - 1; h >= 0; --h) {
      const index_t n = middle(scores, skip, h);
      count[h] = n;
      if (leave > 0) cpu::rank_ops().lowest(begin(scores, skip, h), n, scores.offset[h], true, low);
    }
    for (index_t i = 0; i < low.found; ++i) {
      index_t h = scores.heads - 1;
      while (scores.offset[h] > low.place[i]) --h;
      --count[h];
    }
  }

  /// Calls use(key) for what the row's own winners leave.
  template <class Use>
  static void unsafe(RaggedView<const float> scores, const Ends* skip, RowCutoff safe, index_t h,
                     Use&& use) {
    const float* s = begin(scores, skip, h);
    const index_t n = middle(scores, skip, h);
    for (index_t i = 0; i < n; ++i) {
      const std::uint32_t key = rank_bits(s[i]);
      if (key > safe.bits || (key == safe.bits && safe.ties-- > 0)) continue;
      use(key);
    }
  }
};

template <>
struct KeepEnds<Cpu> {
  static Status run(Context<Cpu>&, const Ends* ends, RaggedView<std::int32_t> slots, index_t* count) {
    for (index_t h = 0; h < slots.heads; ++h) {
      const index_t n = slots.length(h);
      const Ends e = ends[h].within(n);
      std::int32_t* out = slots.row(h);
      std::iota(out, out + e.prefix, 0);
      std::iota(out + e.prefix, out + e.size(), static_cast<std::int32_t>(n - e.suffix));
      count[h] = e.size();
    }
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
