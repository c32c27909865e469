#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/merge_sets.hpp>
#include <kvcondense/prim/rank_bits.hpp>

namespace kvcondense::prim {
namespace cpu {

/// Calls use(place) for the places of [begin, end) that `in` names and whose numbers are above the cutoff, or among its ties.
template <class In, class Use>
void for_above(index_t begin, index_t end, const float* x, RowCutoff cut, In&& in, Use&& use) {
  for (index_t j = begin; j < end; ++j) {
    if (!in(j)) continue;
    const std::uint32_t key = rank_bits(x[j]);
    if (key > cut.bits || (key == cut.bits && cut.ties-- > 0)) use(j);
  }
}
/// Calls use(place) for the k places of [begin, end) with the largest numbers among those that `in` names.
template <class In, class Use>
void for_best(index_t begin, index_t end, const float* x, index_t k, In&& in, Use&& use) {
  if (k <= 0) return;
  const RowCutoff cut = find_cutoff(k, [&](auto&& key) {
    for (index_t j = begin; j < end; ++j)
      if (in(j)) key(rank_bits(x[j]));
  });
  for_above(begin, end, x, cut, in, use);
}
/// The same among all places.
template <class Use>
void for_best(index_t begin, index_t end, const float* x, index_t k, Use&& use) {
  if (k > 0) for_above(begin, end, x, rank_ops().cutoff(x + begin, end - begin, k), [](index_t) { return true; }, use);
}

}  // namespace cpu

template <>
struct MergeSets<Cpu> {
  static Status begin(Context<Cpu>& ctx, RaggedView<const std::int32_t> kept, const index_t* count, const MergeLinks& links) {
    each(ctx, links, [&](index_t h, index_t n, std::int32_t* to) {
      if (count[h] == n) return std::iota(to, to + n, 0);  // no list needed
      std::fill_n(to, n, unlinked);
      for (index_t i = 0; i < count[h]; ++i) to[kept.row(h)[i]] = kept.row(h)[i];
    });
    return Status::ok;
  }

  static Status end(Context<Cpu>& ctx, const MergeLinks& links, RaggedView<std::int32_t> kept, index_t* count,
                    index_t* folded) {
    each(ctx, links, [&](index_t h, index_t n, const std::int32_t* to) {
      count[h] = folded[h] = 0;
      for (index_t j = 0; j < n; ++j) {
        if (to[j] == j) kept.row(h)[count[h]++] = static_cast<std::int32_t>(j);
        folded[h] += to[j] >= 0 && to[j] != j;
      }
    });
    return Status::ok;
  }

  static Status drop(Context<Cpu>& ctx, const MergeLinks& links) {
    each(ctx, links, [&](index_t, index_t n, std::int32_t* to) { std::replace(to, to + n, unlinked, dropped); });
    return Status::ok;
  }

  static Status heirs(Context<Cpu>& ctx, RaggedView<const std::int32_t> heirs, const MergeLinks& links) {
    each(ctx, links, [&](index_t h, index_t n, std::int32_t* to) {
      for (index_t j = 0; j < n; ++j) {
        const std::int32_t heir = heirs.row(h)[j];
        if (heir == j) continue;
        to[j] = to[heir] == heir ? heir : dropped;
        links.likeness.row(h)[j] = 1.0f;
      }
    });
    return Status::ok;
  }

  static Status next(Context<Cpu>& ctx, const SlotRange* targets, const MergeLinks& links) {
    each(ctx, links, [&](index_t h, index_t n, std::int32_t* to) {
      std::int32_t behind = unlinked;
      for (index_t j = n - 1; j >= 0; --j) {
        if (to[j] == unlinked) to[j] = behind, links.likeness.row(h)[j] = 1.0f;
        else if (to[j] == j && targets[h].has(j)) behind = static_cast<std::int32_t>(j);
      }
    });
    return Status::ok;
  }

  static Status nearest_token(Context<Cpu>& ctx, RaggedView<const std::int32_t> tokens, index_t first, index_t last,
                              const SlotRange* targets, const MergeLinks& links) {
    each(ctx, links, [&](index_t h, index_t n, std::int32_t* to) {
      const std::int32_t* token = tokens.row(h);
      const auto stays = [&](index_t j) { return to[j] == j && targets[h].has(j) && token[j] >= first && token[j] < last; };
      index_t before = -1, behind = -1;
      for (index_t j = 0; j < n; ++j) {
        if (stays(j)) before = j;
        if (to[j] != unlinked) continue;
        if (behind < j)
          for (behind = j + 1; behind < n && !stays(behind); ++behind) {}
        const index_t a = before < 0 ? -1 : token[j] - token[before], b = behind >= n ? -1 : token[behind] - token[j];
        if (a < 0 && b < 0) continue;
        const bool older = b < 0 || (a >= 0 && a <= b);
        to[j] = static_cast<std::int32_t>(older ? before : behind);
        links.likeness.row(h)[j] = -static_cast<float>(older ? a : b);
      }
    });
    return Status::ok;
  }

  static Status spans(Context<Cpu>& ctx, RaggedView<const std::int32_t> tokens, const TokenSpan* spans, const SlotRange* targets, double share,
                      SlotRange* region, index_t* parts) {
    ctx.parallel(tokens.heads, [&](index_t h, index_t) {
      const std::int32_t *first = tokens.row(h), *last = first + tokens.length(h);
      const auto below = [&](index_t t) { return std::lower_bound(first, last, static_cast<std::int32_t>(t)) - first; };
      const SpannedSlots s = SpannedSlots::of(below(spans[h].first), below(spans[h].last), targets[h], share);
      region[h] = s.region, parts[h] = s.part;
    });
    return Status::ok;
  }

  static Status runs(Context<Cpu>& ctx, const RunRequest& request, RaggedView<const float> scores, const MergeLinks& links) {
    each(ctx, links, [&](index_t h, index_t, std::int32_t* to) {
      const SlotRange region = request.region[h];
      const index_t size = region.end - region.begin;
      float* like = links.likeness.row(h);
      const float* score = scores.row(h);
      const auto cut = [&](index_t j) { like[j] = -INFINITY; };
      if (size <= 0) return;
      const auto heavy = static_cast<index_t>(std::floor(request.heavy * static_cast<double>(size) + 1e-6));
      // Slots that stay alone first: what they touch is no link.
      cpu::for_best(region.begin, region.end, score, std::min(heavy, size), [&](index_t j) {
        cut(j);
        if (j > region.begin) cut(j - 1);
      });
      for (index_t j = region.begin; j < region.end; ++j)
        if (j + 1 == region.end || to[j] != j || to[j + 1] != j + 1 || std::isnan(like[j])) cut(j);
      const auto open = [&](index_t j) { return like[j] != -INFINITY; };
      index_t links_open = 0;
      for (index_t j = region.begin; j < region.end; ++j) links_open += open(j);
      if (request.sets != nullptr) {  // a link for every slot that is too much
        const index_t wanted = std::clamp<index_t>(size - request.sets[h], 0, links_open);
        float* chosen = links.key.row(h);
        std::fill(chosen + region.begin, chosen + region.end, 0.0f);
        cpu::for_best(region.begin, region.end, like, wanted, open, [&](index_t j) { chosen[j] = 1.0f; });
        for (index_t j = region.begin; j < region.end; ++j)
          if (chosen[j] == 0.0f) cut(j);
      }
      for (index_t first = region.begin; first < region.end;) {
        index_t last = first, best = first;
        while (open(last) && (request.sets != nullptr || like[last] > request.least)) {
          ++last;
          if (rank_bits(score[last]) > rank_bits(score[best])) best = last;
        }
        for (index_t j = first; j <= last; ++j)
          if (to[j] == j) to[j] = static_cast<std::int32_t>(best);
        first = last + 1;
      }
      std::fill(like + region.begin, like + region.end, 1.0f);
    });
    return Status::ok;
  }

  static Status alternate(Context<Cpu>& ctx, const SlotRange* region, const MergeLinks& links) {
    each(ctx, links, [&](index_t h, index_t, std::int32_t* to) {
      bool leaves = true;
      for (index_t j = region[h].begin; j < region[h].end; ++j) {
        if (to[j] != j) continue;
        if (leaves) to[j] = unlinked;
        leaves = !leaves;
      }
    });
    return Status::ok;
  }

  static Status strongest(Context<Cpu>& ctx, const SlotRange* region, index_t chunk, const index_t* most, const MergeLinks& links) {
    each(ctx, links, [&](index_t h, index_t, std::int32_t* to) {
      const index_t end = region[h].end, step = chunk > 0 ? chunk : std::max<index_t>(1, end - region[h].begin);
      float* like = links.likeness.row(h);
      const auto folds = [&](index_t j) { return to[j] >= 0 && to[j] != j && !std::isnan(like[j]); };
      for (index_t first = region[h].begin; first < end; first += step) {
        const index_t last = std::min(end, first + step);
        float* chosen = links.key.row(h);
        std::fill(chosen + first, chosen + last, 0.0f);
        index_t count = 0;
        for (index_t j = first; j < last; ++j) count += folds(j);
        cpu::for_best(first, last, like, std::min(count, most[h]), folds, [&](index_t j) { chosen[j] = 1.0f; });
        for (index_t j = first; j < last; ++j)
          if (to[j] == unlinked || (to[j] >= 0 && to[j] != j && chosen[j] == 0.0f)) to[j] = static_cast<std::int32_t>(j);
      }
    });
    return Status::ok;
  }

 private:
  template <class F>
  static void each(Context<Cpu>& ctx, const MergeLinks& links, F&& f) {
    ctx.parallel(links.heads(), [&](index_t h, index_t) { f(h, links.slots(h), links.to.row(h)); });
  }
};

template <>
struct MergeFilter<Cpu> {
  static Status least(Context<Cpu>& ctx, float likeness, const MergeLinks& links) {
    each(ctx, links, [&](index_t h) { keep(links, h, likeness); });
    return Status::ok;
  }

  static Status mean(Context<Cpu>& ctx, const MergeLinks& links) {
    each(ctx, links, [&](index_t h) {
      float m = 0.0f;
      if (mean_of(links, h, m)) keep(links, h, m - slack);
    });
    return Status::ok;
  }

  static Status moving_mean(Context<Cpu>& ctx, float old, float add, TensorView<float, 2> state, const MergeLinks& links) {
    each(ctx, links, [&](index_t h) {
      float m = 0.0f;
      if (!mean_of(links, h, m)) return;
      state(h, 0) = state(h, 1) > 0.0f ? old * state(h, 0) + add * m : m;
      state(h, 1) = 1.0f;
      keep(links, h, state(h, 0) - slack);
    });
    return Status::ok;
  }

  static Status best_part(Context<Cpu>& ctx, double part, const MergeLinks& links) {
    each(ctx, links, [&](index_t h) {
      index_t count = 0;
      for (index_t j = 0; j < links.slots(h); ++j) count += links.folds(h, j);
      const auto most = static_cast<index_t>(std::ceil(part * static_cast<double>(count) - 1e-9));
      keep_best(links, h, links.likeness.row(h), most, [&](index_t j) { return links.folds(h, j); });
    });
    return Status::ok;
  }

  static Status best_scores(Context<Cpu>& ctx, RaggedView<const float> scores, double per_target, const MergeLinks& links) {
    each(ctx, links, [&](index_t h) {
      const std::int32_t* to = links.to.row(h);
      index_t stay = 0, open = 0;
      for (index_t j = 0; j < links.slots(h); ++j) stay += to[j] == j, open += to[j] == unlinked;
      const auto most = static_cast<index_t>(std::floor(per_target * static_cast<double>(stay) + 1e-6));
      keep_best(links, h, scores.row(h), std::min(most, open), [&](index_t j) { return to[j] == unlinked; });
    });
    return Status::ok;
  }

  static Status chance(Context<Cpu>& ctx, RaggedView<const float> scores, const SlotRange* targets,
                       RaggedView<const std::int32_t> tokens, std::uint64_t seed, const MergeLinks& links) {
    each(ctx, links, [&](index_t h) {
      const float* score = scores.row(h);
      std::int32_t* to = links.to.row(h);
      std::int32_t at = unlinked;
      float mean = 0.0f;
      for (index_t j = 0; j < links.slots(h); ++j) {
        if (!links.folds(h, j)) continue;
        if (to[j] != at) {
          at = to[j], mean = 0.0f;
          const index_t count = links.for_targets(h, j, targets, [&](index_t t) { mean += score[t]; });
          mean /= static_cast<float>(count);
        }
        const bool certain = mean == 0.0f && score[j] > 0.0f;
        const float p = certain ? 1.0f : score[j] / mean;  // 0 / 0 passes nothing
        const float u = random_uniform(random_bits(seed, static_cast<std::uint64_t>(h)), static_cast<std::uint64_t>(tokens.row(h)[j]));
        if (!(u < p)) to[j] = dropped;
      }
    });
    return Status::ok;
  }

 private:
  template <class F>
  static void each(Context<Cpu>& ctx, const MergeLinks& links, F&& f) {
    ctx.parallel(links.heads(), [&](index_t h, index_t) { f(h); });
  }

  static constexpr float slack = 1e-6f;

  static bool mean_of(const MergeLinks& links, index_t h, float& mean) {
    index_t count = 0;
    float sum = 0.0f;
    for (index_t j = 0; j < links.slots(h); ++j)
      if (links.folds(h, j)) sum += links.likeness.row(h)[j], ++count;
    mean = sum / static_cast<float>(std::max<index_t>(1, count));
    return count > 0;
  }

  static void keep(const MergeLinks& links, index_t h, float least) {
    for (index_t j = 0; j < links.slots(h); ++j)
      if (links.folds(h, j) && !(links.likeness.row(h)[j] >= least)) links.to.row(h)[j] = dropped;
  }

  /// The others of those that `in` names leave for good.
  template <class In>
  static void keep_best(const MergeLinks& links, index_t h, const float* x, index_t most, In&& in) {
    const index_t n = links.slots(h);
    float* chosen = links.key.row(h);
    std::fill_n(chosen, n, 0.0f);
    cpu::for_best(0, n, x, most, in, [&](index_t j) { chosen[j] = 1.0f; });
    for (index_t j = 0; j < n; ++j)
      if (in(j) && chosen[j] == 0.0f) links.to.row(h)[j] = dropped;
  }
};

}  // namespace kvcondense::prim
