#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::prim {

/// Consecutive slots of a head that lie side by side in one page.
struct SlotRun {
  std::byte* page = nullptr;  ///< its payload
  std::int32_t begin = 0;     ///< the first of them, counted in slots of the head; they end where the next run begins
  std::int32_t place = 0;     ///< where it lies in the page
  bool coded = false;         ///< a page of codes; else of exact numbers
};

/// Where the rows of one column (all keys, or all values) lie, for every head: head h has the runs
/// [offset[h], offset[h + 1]), the first of which begins at slot 0. Tombstones are places that no run covers.
struct ColumnRuns {
  const SlotRun* runs = nullptr;
  const index_t* offset = nullptr;  ///< heads + 1
  index_t page_slots = 0;           ///< of pages of codes; pages of exact numbers may have any size
};

/// The run that holds a slot; the head has that slot.
KVCONDENSE_HD inline const SlotRun& run_of(const ColumnRuns& column, index_t head, std::int32_t slot) {
  const SlotRun* low = column.runs + column.offset[head];
  const SlotRun* high = column.runs + column.offset[head + 1];
  while (high - low > 1) {
    const SlotRun* middle = low + (high - low) / 2;
    if (middle->begin <= slot) low = middle;
    else high = middle;
  }
  return *low;
}

/// Numbers of the slots of a head, `room` apart.
template <class T>
struct HeadNumbers {
  T* data = nullptr;
  index_t room = 0;

  KVCONDENSE_HD T* row(index_t head) const { return data + head * room; }
};

/// What attention reads of slots besides their rows, see SlotScalars; null: the neutral number for all. Of the newest `fresh` slots of every head
/// nothing is written yet: theirs are neutral too.
struct PagedScalars {
  HeadNumbers<const float> bias{};
  HeadNumbers<const float> value_scale{};
  index_t fresh = 0;

  KVCONDENSE_HD float bias_of(index_t head, index_t slot, index_t slots) const {
    return bias.data != nullptr && slot < slots - fresh ? bias.row(head)[slot] : 0.0f;
  }
  KVCONDENSE_HD float value_scale_of(index_t head, index_t slot, index_t slots) const {
    return value_scale.data != nullptr && slot < slots - fresh ? value_scale.row(head)[slot] : 1.0f;
  }
};

/// The summary slots of all heads, see SummarySlot: of head h the mean key and behind it the mean value, at h * width, and how many slots they are the
/// mean of; a head of which that is 0 has none.
struct PagedSummaries {
  const float* means = nullptr;
  const index_t* counts = nullptr;  ///< null: no head has one
  index_t width = 0;

  KVCONDENSE_HD index_t count(index_t head) const { return counts == nullptr ? 0 : counts[head]; }
};

/// Slots whose tokens the slot behind them holds too, as those of tokens that no step has seen may: a query that sees the one does not see the other.
/// Number i of a head: whether the slot of its pending token i holds what the slot in front of it held.
struct PassedSlots {
  HeadNumbers<const std::uint8_t> passed{};  ///< null: there are none
  index_t pending = 0;

  /// From a query that sees so many of the head's slots.
  KVCONDENSE_HD bool hides(index_t head, index_t slot, index_t slots, index_t visible) const {
    const index_t next = slot + 1 - (slots - pending);
    return passed.data != nullptr && next >= 0 && slot + 1 < visible && passed.row(head)[next] != 0;
  }
};

/// How raw keys turn as they are read: the key of slot j by j positions, see RopeTable, of which these are the numbers.
struct KeyTurn {
  const float* fine = nullptr;    ///< null: keys are stored as attention compares them
  const float* coarse = nullptr;  ///< for every slot of the longest head
  index_t pairs = 0;
  RopePairing pairing = RopePairing::half_split;
};

/// All slots of all KV heads of a layer, keys and values each in pages of their own: exact first slots, codes,
/// exact newest slots, in any order and number. The form in which kernels read a cache.
template <CodecDescription KeyCodec, CodecDescription ValueCodec>
struct PagedHeads {
  KeyCodec key_codec{};
  ValueCodec value_codec{};
  ExactRows exact{};
  ColumnRuns keys{};
  ColumnRuns values{};
  const index_t* slots = nullptr;  ///< per head
  index_t kv_heads = 0;
  PagedScalars scalars{};
  PagedSummaries summaries{};
  KeyTurn turn{};
  PassedSlots passed{};
};

}  // namespace kvcondense::prim
