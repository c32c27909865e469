#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/output_error.hpp>
#include <kvcondense/evict/blocks/then.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Ranks tokens by how far the attention output moves without them, instead of by their attention alone.
///
/// Idea     a token whose value is what the output is anyway can go however much attention it draws; the
///          policy's scores and the values tell the error exactly.
/// Source   CAOTE, arXiv:2504.14051; fast is its FastCAOTE, with the plain mean of the values as output.
/// Needs    what the policy needs, and values.
/// Shapes   values [kv_heads, slots, value_dim], scores [kv_heads, slots].
/// Cost     two reads of the values of the slots that compete whenever the policy chooses, and one of protected ones that
///          are in the output: seldom in `every(caote(tova), tokens=256)`. With `greedy` one for every slot that leaves: evict
///          often, or a prompt in blocks (block_prefill), so that few leave at a time.
/// Numbers  weights are the policy's scores, divided by their sum; the output is that of the slots that have one. These are
///          all slots of a head, protected ones too, where scores stay as the source gives them (h2o, tova,
///          observed_attention); where a pool makes them anew for the slots that compete (snapkv), these alone. Only slots
///          that compete have errors. float32, sums in float64 (prim/output_error.hpp). Without `greedy` errors are those of
///          one slot leaving. With it a budget that depends on scores (ada) is shared by attention, without it by errors.
/// Differs  the weights of a query group are reduced first, as the policy does it, and one error is computed per
///          KV head, where the paper takes the mean of one per query head: policies keep a number per slot of a KV
///          head, and those that sum attention up (h2o) would have to keep one per query head. The two agree where
///          query heads of a group weigh slots alike. Over a policy of one set per layer (tova) errors are the
///          mean over heads.
/// Errors   incompatible over a policy whose scores are no shares of attention, or that does not keep single
///          slots by score; greedy also over one that keeps one set per layer.
template <class P>
struct Caote {
  static constexpr Descriptor about{"caote", Stage::evict, "arXiv:2504.14051"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  bool fast = false;
  bool greedy = false;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    const prim::HeadOutput of{fast, leaves_scores(p.pool)};
    return p.with_pool(Then{p.pool, OutputError{of, p.source.one_set(), greedy}})
        .with_select(DropLeastError{p.select, of, !greedy});
  }
  Status validate(const CacheShape& shape) const {
    const auto p = policy.pipeline();
    if (!p.scores_are_shares() || !takes_best(p.select) || (greedy && p.source.one_set())) return Status::incompatible;
    return policy.validate(shape);
  }
};

template <class P, class... Fields>
Caote(P, Fields...) -> Caote<P>;

}  // namespace kvcondense::evict
