#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/merge_links.hpp>

namespace kvcondense::prim {

/// What a slot counts for in the sum of its target, and the target itself beside it.
enum class MergeKernel : std::uint8_t {
  uniform,      ///< 1, and 1
  middle,       ///< half of the target and half of the slot; the target 1
  likeness,     ///< its likeness, and 1
  half_likeness,  ///< (likeness + 1) / 2, and 1
  exponential,  ///< exp(likeness), and e
  score,        ///< its score, and the target's; where all are zero the target stays as it is
  size,         ///< how many tokens it stands for, and the target likewise
  length_share, ///< max(likeness, 0) * s / (s + target's s + 1e-6), s its score, and 1
  spread,       ///< 1 / number of targets it has (`fan`), and 1
};

/// What sums are divided by.
enum class MergeNormaliser : std::uint8_t {
  sum,      ///< the sum of all weights
  members,  ///< the number of slots in the sum
  none,     ///< nothing: the sum grows
};

/// What the slots of a sum count.
struct WeightRequest {
  MergeKernel kernel = MergeKernel::uniform;
  MergeNormaliser normaliser = MergeNormaliser::sum;
  RaggedView<const float> scores{};      ///< of kernels that read some
  RaggedView<const float> log_sizes{};   ///< of kernels that read sizes
  const SlotRange* targets = nullptr;    ///< with `fan`
};

/// What a kernel gives a target and a slot that folds, before they are divided.
struct MergeWeightOf {
  const WeightRequest& request;
  const MergeLinks& links;
  index_t head;

  KVCONDENSE_HD static float finite(float x) { return x - x == 0.0f ? x : 0.0f; }

  KVCONDENSE_HD float target(index_t j) const {
    switch (request.kernel) {
      case MergeKernel::exponential: return 2.71828183f;
      case MergeKernel::score: return finite(request.scores.row(head)[j]);
      case MergeKernel::size: return std::exp(request.log_sizes.row(head)[j]);
      default: return 1.0f;
    }
  }
  KVCONDENSE_HD float member(index_t j) const {
    const float like = links.likeness.row(head)[j];
    switch (request.kernel) {
      case MergeKernel::uniform: return 1.0f;
      case MergeKernel::middle: return 0.5f;
      case MergeKernel::likeness: return like;
      case MergeKernel::half_likeness: return 0.5f * (like + 1.0f);
      case MergeKernel::exponential: return std::exp(like);
      case MergeKernel::score: return request.scores.row(head)[j];
      case MergeKernel::size: return std::exp(request.log_sizes.row(head)[j]);
      case MergeKernel::length_share: {
        const float s = request.scores.row(head)[j];
        return (like < 0.0f ? 0.0f : like) * s / (s + request.scores.row(head)[links.to.row(head)[j]] + 1e-6f);
      }
      case MergeKernel::spread: return 1.0f / static_cast<float>(links.targets_of(head, j, request.targets));
    }
    return 0.0f;
  }
};

/// How slots of known targets are summed, and what is said of the sums.
///
///   run(ctx, const WeightRequest&, MergeLinks)        sets key and value, to the same numbers
///   votes(ctx, RaggedView<const float> log_scores, bool scaled, RaggedView<float> log_sizes, MergeLinks)
///       key and value: size * exp(score), divided by their sum. scaled: keys also by that factor which gives a sum of
///       keys the score log(sum of size * exp(score)) - log(sum of sizes); where the mean score is below 0.05 or of
///       the other sign, or without `scaled`, log_sizes of the target says so instead: it is no longer the sum's logarithm.
///   add_sizes(ctx, const SlotRange* targets, MergeLinks, RaggedView<float> log_sizes)
///       log_sizes of every target becomes log of the sum of exp over it and what folds into it; what folds into
///       several counts in each as a part
///   add_scales(ctx, const SlotRange* targets, MergeLinks, RaggedView<float> scales)      the sum of them
///   places(ctx, bool newest, MergeLinks, RaggedView<float> places, RaggedView<int32> turn)
///       turn: positions by which a slot's key turns before it is summed. newest: all turn to the newest position
///       of the sum, which becomes the target's; else to the target's. Places hold positions as bits.
///
/// Numbers  float32, in slot order; a weight or sum that is no number counts as 0, and a sum of 0 leaves the target
///          as it is. Votes are computed from logarithms throughout.
/// Cost     a few passes over numbers per slot. `add_sizes` and `add_scales` take a bound of all heads' slots as a last argument, which
///          only CUDA reads: there they sort members in the workspace.
template <Backend B>
struct MergeWeights {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
