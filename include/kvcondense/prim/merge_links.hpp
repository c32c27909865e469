#pragma once

#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::prim {

/// In place of a target: a slot that leaves and may still fold into another one, and one that leaves for good.
inline constexpr std::int32_t unlinked = -1, dropped = -2;

/// Slots of a head that may be written: the first `prefix`, and those of [begin, end).
struct SlotRange {
  index_t prefix = 0;
  index_t begin = 0;
  index_t end = 0;

  KVCONDENSE_HD constexpr bool has(index_t slot) const { return slot < prefix || (slot >= begin && slot < end); }
};

/// Where the slots of a layer go, and how much each of them counts: what finders of merge sets hand to the sum.
///
/// to        a slot's own place: it stays. Another slot's place, which stays: it folds into that one. Negative: it
///           leaves. No chains: what a slot folds into stays.
/// likeness  of slots that fold, to their target, as the finder measured it
/// key       how much a slot's key counts in the sum of its target; at the target's place, how much its own does
/// value     the same for values
/// fan       a slot folds into this many targets, its own and the next ones that may be targets, all alike
struct MergeLinks {
  RaggedView<std::int32_t> to{};
  RaggedView<float> likeness{};
  RaggedView<float> key{};
  RaggedView<float> value{};
  index_t fan = 1;

  KVCONDENSE_HD index_t heads() const { return to.heads; }
  KVCONDENSE_HD index_t slots(index_t head) const { return to.length(head); }
  KVCONDENSE_HD bool folds(index_t head, index_t slot) const { return to.row(head)[slot] >= 0 && to.row(head)[slot] != slot; }

  /// Calls use(target) for all targets of a slot that folds; returns how many there are.
  template <class Use>
  index_t for_targets(index_t head, index_t slot, const SlotRange* targets, Use&& use) const {
    const std::int32_t* at = to.row(head);
    if (fan == 1) return use(at[slot]), 1;
    index_t count = 0;
    for (index_t t = at[slot]; t < slots(head) && count < fan; ++t)
      if (at[t] == t && targets[head].has(t)) use(t), ++count;
    return count;
  }
  KVCONDENSE_HD index_t targets_of(index_t head, index_t slot, const SlotRange* targets) const {
    index_t count = 0;
    const std::int32_t* at = to.row(head);
    for (index_t t = at[slot]; t < slots(head) && count < fan; ++t) count += fan == 1 || (at[t] == t && targets[head].has(t));
    return count;
  }
};

}  // namespace kvcondense::prim
