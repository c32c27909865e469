#pragma once

#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Lets what leaves a head live on as one more slot: the mean of all keys and values that left.
///
/// Idea     a crowd of tokens that nobody needs exactly still draws attention as a crowd; without it all
///          others get too much.
/// Source   the compensation token of RazorAttention, arXiv:2407.15891, over any policy.
/// Needs    what the wrapped policy needs; keys stored rotated.
/// Shapes   per KV head (head_dim + value_dim) float32 numbers, whatever stores the slots.
/// Cost     one dot product per query; a slot is decoded once more when it leaves.
/// Numbers  logit = scale * q . mean key + log(number of tokens that left); float32, means updated one
///          token after another. One token that left is replaced exactly. The mean counts in the
///          output and lse, but no policy sees its share of attention.
/// Differs  taking tokens back (truncate) lowers the number of those that left but cannot take them out of
///          the mean; removed ranges stay in it.
/// Errors   incompatible with a position stage that stores raw keys; those of the wrapped policy.
template <class P>
struct Compensate {
  static constexpr Descriptor about{"compensate", Stage::evict, "arXiv:2407.15891"};
  static constexpr Inputs needs = P::needs;

  P policy{};

  constexpr auto pipeline() const {
    auto p = policy.pipeline();
    p.residual = Residual::mean;
    return p;
  }
  Status validate(const CacheShape& shape) const { return policy.validate(shape); }
};

template <class P>
Compensate(P) -> Compensate<P>;

}  // namespace kvcondense::evict
