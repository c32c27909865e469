#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// The signature that all others are compared with.
enum class SignatureAnchor : std::uint8_t { random, zeros, ones, mean, alternating };

/// Which signatures slots are told apart by.
struct SignatureRequest {
  SignatureAnchor anchor = SignatureAnchor::random;
  std::uint64_t seed = 0;
  index_t block = 0;  ///< 0: signatures of single slots; else of blocks of this many
};

/// Bit i of the anchor; `ones` of `all` signatures have it.
KVCONDENSE_HD inline bool anchor_bit(const SignatureRequest& request, index_t i, index_t ones, index_t all) {
  switch (request.anchor) {
    case SignatureAnchor::random: return (random_bits(request.seed, static_cast<std::uint64_t>(i)) & 1u) != 0;
    case SignatureAnchor::zeros: return false;
    case SignatureAnchor::ones: return true;
    case SignatureAnchor::mean: return 2 * ones > all;
    case SignatureAnchor::alternating: return i % 2 != 0;
  }
  return false;
}

/// Slots that stand for others, told apart by signatures of bits.
///
///   distances(ctx, const SignatureRequest&, RaggedView<const float> scores, const Ends* skip, const index_t* top,
///             RaggedView<float> out) -> Status
///       Between the ends skip[h] slots are candidates. block 0: bit h of a slot says whether it is one of the best
///       top[h] candidates of head h; out is how many bits differ from the anchor, the same for all heads. Else bit i of
///       a block, counted from skip[h].prefix, says whether its slot i is in the better half of the head's candidates;
///       out is the same for all slots of a block, +inf for those of a last one that is not whole.
///   pick(ctx, index_t block, RaggedView<float> distances, const Ends* skip, const index_t* count,
///        RaggedView<int32> slots, index_t* kept) -> Status
///       adds to the kept slots (ascending) count[h] candidates that are not kept, at equal steps of their order by
///       distance, the smaller slot first where equal; with blocks count[h] / block of those without a kept slot.
///       Distances are used up.
///
/// Anchors  bit i: of (seed, i), 0, 1, whether more than half of the signatures have it, i % 2.
/// Numbers  equal scores: the smaller slot is better; NaN is worst. Fewer candidates than asked for: all of them.
/// Errors   not_supported when heads hold different numbers of slots and block is 0.
template <Backend B>
struct Representatives {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
