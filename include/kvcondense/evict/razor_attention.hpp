#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/head_binary.hpp>
#include <kvcondense/evict/blocks/no_score.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Protect: the newest tokens, a part of all tokens so far but never fewer than `least`.
struct RecentShare {
  index_t least = 4000;
  index_t divisor = 5;

  constexpr index_t of(index_t seen) const { return std::max(least, seen / divisor); }
  constexpr index_t most() const { return least; }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t) const {
    return {0, of(view.seen)};
  }
};

/// Heads that are among the largest of one table or of another.
struct EitherTop {
  TopHeads first{};
  TopHeads second{};

  bool operator()(index_t layer, index_t head) const { return first(layer, head) || second(layer, head); }
};

/// Keeps everything in the few heads that retrieve from afar; all others hold the first and the newest
/// tokens, and one more slot that stands for all that left.
///
/// Idea     most heads look at what is near, and at the rest as a crowd.
/// Source   RazorAttention, arXiv:2407.15891. A model without induction heads, or with ALiBi, has other
///          rules in the paper; they are not here.
/// Needs    `induction` and `echo`, numbers per (layer, KV head): `kvcondense-eval identify-heads` makes
///          them. Keys stored rotated.
/// Shapes   both tables [layers, kv_heads].
/// Cost     per head that is not full: sinks + max(least, tokens / divisor) slots and (head_dim +
///          value_dim) float32 numbers; kv_heads numbers of workspace per step.
/// Numbers  full are the round(induction_part * heads) heads with most induction and the round(echo_part *
///          heads) with most echo, halves to even, at least one of each where its part is above 0; equal ones:
///          the earlier layer, then the smaller head. The summary slot as in `compensate`.
/// Differs  the mean is kept up to date while tokens are generated; the paper does not say.
/// Errors   missing_input without tables; shape_mismatch when they are not of this model; incompatible with
///          a position stage that stores raw keys; invalid_argument when a part is outside [0, 1], sinks
///          < 0, least < 1 or divisor < 1.
struct RazorAttention {
  static constexpr Descriptor about{"razor_attention", Stage::evict, "arXiv:2407.15891"};
  static constexpr Inputs needs{};

  double induction_part = 0.14;
  double echo_part = 0.01;
  index_t sinks = 4;
  index_t least = 4000;
  index_t divisor = 5;
  bool compensate = true;
  HeadTable induction{};  ///< borrowed
  HeadTable echo{};       ///< borrowed

  const char* missing() const { return induction.empty() ? "induction" : echo.empty() ? "echo" : nullptr; }

  static index_t top(double part, index_t heads) {
    if (!(part > 0.0)) return 0;
    return std::clamp<index_t>(static_cast<index_t>(std::nearbyint(part * static_cast<double>(heads))), 1, heads);
  }

  auto pipeline() const {
    return Pipeline{NoScore{},
                    NoPool{},
                    Both{Sinks{sinks}, RecentShare{least, divisor}},
                    HeadBinary{EitherTop{TopHeads::of(induction, top(induction_part, induction.size())),
                                         TopHeads::of(echo, top(echo_part, echo.size()))}},
                    Fixed{.fill = true},
                    EveryStep{},
                    compensate ? Residual::mean : Residual::none};
  }
  Status validate(const CacheShape& shape) const {
    const auto part = [](double x) { return x >= 0.0 && x <= 1.0; };
    if (!part(induction_part) || !part(echo_part) || sinks < 0 || least < 1 || divisor < 1)
      return Status::invalid_argument;
    if (missing() != nullptr) return Status::missing_input;
    if (!induction.fits(shape) || !echo.fits(shape)) return Status::shape_mismatch;
    return induction.finite() && echo.finite() ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<RazorAttention, Cpu>());

}  // namespace kvcondense::evict
