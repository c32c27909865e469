#pragma once

#include <algorithm>
#include <span>
#include <utility>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::storage {

/// Keeps in fast memory what the last few steps used, and loads only what is new.
///
/// Idea     neighbouring steps use much the same: what was used within `window` steps is likely used again. The
///          last item moves into the place of one that leaves, so the buffer stays dense.
/// Source   LLM in a flash, arXiv:2312.11514, windowing and its management of deletions.
/// Needs    which items a step uses: pages a selection chose, rows, neurons.
/// Shapes   items 0 .. items - 1; a place in the buffer per resident item.
/// Cost     per step its items and those of the step that leaves the window; memory for one number per item and
///          for the lists of `window` steps.
/// Numbers  items of a step in any order, once each.
/// Errors   out_of_range: an item that does not exist; invalid_argument: one named twice; out_of_memory. The set is
///          then as it was.
class FlashWindow {
 public:
  static constexpr Descriptor about{"flash_window", Stage::storage, "arXiv:2312.11514"};

  /// Moves an item's bytes from one place of the buffer to another.
  struct Move {
    index_t from = 0;
    index_t to = 0;
  };

  static Expected<FlashWindow> make(index_t items, index_t window, MemoryResource<Cpu>& memory = heap_memory()) {
    if (items < 1 || window < 1) return Status::invalid_argument;
    FlashWindow w(memory);
    w.window_ = window;
    for (Buffer<index_t>* b : {&w.place_, &w.last_use_, &w.seen_})
      if (const Status s = b->resize(items, -1); s != Status::ok) return s;
    return Expected<FlashWindow>(std::move(w));
  }

  index_t resident() const { return items_.size(); }
  std::span<const index_t> items() const { return items_.span(); }  ///< by place
  /// Where an item lies; -1: nowhere.
  index_t place(index_t item) const { return place_[item]; }
  index_t loaded_so_far() const { return loaded_total_; }

  /// One step. Then `dropped()` have left, `moves()` are to be made in their order, and `loaded()` are to be read
  /// into their places.
  Status step(std::span<const index_t> active) {
    const auto n = static_cast<index_t>(active.size());
    for (std::size_t i = 0; i < active.size(); ++i)
      if (active[i] < 0 || active[i] >= place_.size()) return Status::out_of_range;
    const index_t room = items_.size() + n;
    for (Buffer<index_t>* b : {&items_, &loaded_, &dropped_})
      if (const Status s = b->reserve(room); s != Status::ok) return s;
    if (const Status s = moves_.reserve(room); s != Status::ok) return s;
    if (const Status s = history_.reserve(history_.size() + n); s != Status::ok) return s;
    if (const Status s = ends_.reserve(ends_.size() + 1); s != Status::ok) return s;
    ++attempt_;
    for (const index_t item : active) {
      if (seen_[item] == attempt_) return Status::invalid_argument;
      seen_[item] = attempt_;
    }
    for (const index_t item : active) last_use_[item] = step_;

    loaded_.shrink(0), dropped_.shrink(0), moves_.shrink(0);
    if (ends_.size() == window_) {  // the oldest step leaves the window
      for (index_t i = 0; i < ends_[0]; ++i)
        if (last_use_[history_[i]] <= step_ - window_ && place_[history_[i]] >= 0) drop(history_[i]);
      const index_t gone = ends_[0];
      history_.erase_front(gone);
      ends_.erase_front(1);
      for (index_t& e : ends_) e -= gone;
    }
    for (const index_t item : active) {
      history_.append_reserved(item);
      if (place_[item] >= 0) continue;
      place_[item] = items_.size();
      items_.append_reserved(item);
      loaded_.append_reserved(item);
    }
    ends_.append_reserved(history_.size());
    loaded_total_ += loaded_.size();
    ++step_;
    return Status::ok;
  }

  std::span<const index_t> loaded() const { return loaded_.span(); }
  std::span<const index_t> dropped() const { return dropped_.span(); }
  std::span<const Move> moves() const { return moves_.span(); }

 private:
  explicit FlashWindow(MemoryResource<Cpu>& m)
      : place_(m), last_use_(m), seen_(m), items_(m), history_(m), ends_(m), loaded_(m), dropped_(m), moves_(m) {}

  void drop(index_t item) {
    const index_t hole = place_[item], last = items_.size() - 1;
    if (hole != last) {
      items_[hole] = items_[last];
      place_[items_[hole]] = hole;
      moves_.append_reserved({last, hole});
    }
    items_.shrink(last);
    place_[item] = -1;
    dropped_.append_reserved(item);
  }

  index_t window_ = 1, step_ = 0, loaded_total_ = 0;
  index_t attempt_ = 0;               ///< calls of `step`, refused ones too
  Buffer<index_t> place_, last_use_, seen_;  ///< per item: where, in which step, in which attempt
  Buffer<index_t> items_;             ///< per place
  Buffer<index_t> history_, ends_;    ///< items of the steps in the window, and where each ends
  Buffer<index_t> loaded_, dropped_;
  Buffer<Move> moves_;
};

}  // namespace kvcondense::storage
