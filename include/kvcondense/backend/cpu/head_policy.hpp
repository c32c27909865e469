#pragma once

#include <algorithm>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/top_k.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/head_policy.hpp>

namespace kvcondense::prim {

/// Threads share the heads.
template <>
struct HeadPolicies<Cpu> {
  static Status choose(Context<Cpu>& ctx, const HeadPolicySets& sets, RaggedView<const float> sums,
                       RaggedView<const float> near, RaggedView<const float> scores, double recovery,
                       RaggedView<float> policy) {
    ctx.parallel(policy.heads, [&](index_t h, index_t) {
      double kept[6] = {}, close = 0.0;  // by the first policy that keeps a slot, as if none were local
      each_slot(sets, scores.row(h), h, [&](index_t j, HeadPolicy least) {
        kept[static_cast<int>(least)] += static_cast<double>(sums.row(h)[j]);
        if (least > HeadPolicy::frequent) close += static_cast<double>(near.row(h)[j]);
      });
      const double all = kept[1] + kept[2] + kept[3] + kept[5];
      kept[4] = close;
      HeadPolicy choice = HeadPolicy::special;
      for (double sum = kept[1]; choice != HeadPolicy::full && !(sum >= recovery * all);) {
        choice = static_cast<HeadPolicy>(static_cast<int>(choice) + 1);
        sum += kept[static_cast<int>(choice)];
      }
      std::fill_n(policy.row(h), policy.length(h), static_cast<float>(choice));
    });
    return Status::ok;
  }

  static Status mark(Context<Cpu>& ctx, const HeadPolicySets& sets, RaggedView<const float> policy,
                     RaggedView<float> scores) {
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const index_t n = scores.length(h);
      if (n == 0) return;
      const auto own = static_cast<HeadPolicy>(static_cast<int>(policy.row(h)[0]));
      each_slot(sets, scores.row(h), h, [&](index_t j, HeadPolicy least) {
        if (least > HeadPolicy::local && j >= n - sets.local) least = HeadPolicy::local;
        if (own == HeadPolicy::undecided || least <= own) scores.row(h)[j] = std::numeric_limits<float>::infinity();
      });
    });
    return Status::ok;
  }

 private:
  /// Calls use(slot, first policy that keeps it, wherever it lies) for every slot of a head, in order.
  template <class Use>
  static void each_slot(const HeadPolicySets& sets, const float* scores, index_t h, Use&& use) {
    const index_t n = sets.classes.length(h);
    const RowCutoff cut = cpu::row_cutoff(scores, n, std::clamp<index_t>(sets.frequent, 0, n));
    index_t ties = cut.ties;
    for (index_t j = 0; j < n; ++j) {
      const std::uint32_t key = rank_bits(scores[j]);
      const bool frequent = key > cut.bits || (key == cut.bits && ties-- > 0);
      const float kind = sets.classes.row(h)[j];
      use(j, kind == static_cast<float>(TokenClass::special)       ? HeadPolicy::special
             : kind == static_cast<float>(TokenClass::punctuation) ? HeadPolicy::punctuation
             : frequent                                            ? HeadPolicy::frequent
                                                                   : HeadPolicy::full);
    }
  }
};

}  // namespace kvcondense::prim
