#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include <kvcondense/cache/kept.hpp>
#include <kvcondense/core/buffer.hpp>

namespace kvcondense::cache {

/// Which token each slot of a head holds: its ordinal among all tokens ever appended, ascending.
///
/// As long as nothing has left the middle, ordinals are consecutive and cost no memory. Later the few that left last are
/// still in the list, and passed over: a full cache loses one at every step, and moves what is behind it once in sixteen.
class SlotIds {
 public:
  SlotIds() = default;
  explicit SlotIds(MemoryResource<Cpu>& memory) : list_(memory) {}

  index_t size() const { return listed_ ? list_.size() - gone_ : count_; }
  bool listed() const { return listed_; }
  std::size_t bytes() const { return list_.bytes(); }
  /// One of them; whoever wants many calls `copy_to`.
  index_t operator[](index_t slot) const { return listed_ ? list_[place(slot)] : first_ + slot; }
  /// Of the slots [first, first + n).
  void copy_to(index_t first, index_t n, std::int32_t* out) const {
    if (!listed_) return std::iota(out, out + n, static_cast<std::int32_t>(first_ + first));
    index_t passed = n > 0 ? place(first) - first : 0;
    for (index_t slot = first, end = first; slot < first + n; slot = end) {
      while (passed < gone_ && before_[passed] <= slot) ++passed;
      end = passed < gone_ ? std::min<index_t>(before_[passed], first + n) : first + n;
      out = std::copy_n(list_.data() + slot + passed, end - slot, out);
    }
  }

  /// Room so that `keep` and `append(n)` cannot fail.
  Status reserve(index_t n) {
    return listed_ ? list_.reserve(list_.size() + n) : Status::ok;
  }
  Status reserve_list() { return listed_ ? Status::ok : list_.reserve(size() + few, true); }

  void append(index_t first, index_t n) {
    if (!listed_) {
      if (count_ == 0) first_ = first;
      if (first_ + count_ == first) {
        count_ += n;
        return;
      }
    }
    for (index_t i = 0; i < n; ++i) list_.append_reserved(static_cast<std::int32_t>(first + i));
  }

  /// Whether appending token `first` needs a list although the ids so far do not.
  bool gap_before(index_t first) const { return !listed_ && count_ > 0 && first_ + count_ != first; }
  Status list_with_room(index_t n) {
    if (const Status s = list_.reserve((listed_ ? list_.size() : count_) + n); s != Status::ok) return s;
    make_list();
    return Status::ok;
  }

  /// After `reserve_list`, when anything but a tail leaves.
  void keep(const Kept& kept) {
    const index_t n = kept.size();
    if (n == size()) return;
    if (n == 0 || kept[n - 1] == n - 1 || (!listed_ && kept[n - 1] - kept[0] == n - 1)) {
      // A consecutive run of consecutive ordinals stays one.
      if (!listed_) {
        first_ += n > 0 ? kept[0] : 0;
        count_ = n;
      } else {
        pop_back(size() - n);
      }
      return;
    }
    make_list();
    const index_t leave = size() - n;
    if (leave > few - gone_ || leave > few / 2) settle();
    if (leave > few / 2) {
      gather_down(list_.data(), kept);
      list_.shrink(n);
      return;
    }
    index_t left = 0;
    kept.for_gaps(0, size(), [&](index_t first, index_t last) {
      for (index_t slot = first; slot < last; ++slot) pass_over(slot - left++);
    });
    drop_tail();
  }

  void pop_back(index_t n) {
    if (!listed_) return void(count_ -= n);
    const index_t stay = size() - n;
    if (n > 0) list_.shrink(place(stay));
    while (gone_ > 0 && before_[gone_ - 1] > stay) before_[--gone_] = none;
    drop_tail();
  }

  /// Number of slots whose token is below `ordinal`.
  index_t below(index_t ordinal) const {
    if (!listed_) return std::clamp<index_t>(ordinal - first_, 0, count_);
    index_t n = std::lower_bound(list_.begin(), list_.end(), ordinal) - list_.begin(), passed = 0;
    while (passed < gone_ && before_[passed] + passed < n) ++passed;
    return n - passed;
  }

  Status fork(SlotIds& out) const {
    out.listed_ = listed_, out.first_ = first_, out.count_ = count_;
    out.gone_ = gone_;
    std::copy_n(before_, few, out.before_);
    return listed_ ? out.list_.copy_from(list_) : Status::ok;
  }

  void give_back() { list_.give_back(list_.size()); }

  void clear() {
    list_.shrink(0);
    listed_ = false;
    first_ = count_ = gone_ = 0;
    std::fill_n(before_, few, none);
  }

 private:
  static constexpr index_t few = 16;
  static constexpr std::int32_t none = 0x7fffffff;

  /// Where a slot, or the end of all, lies in the list. Every entry is compared: shorter than to look for the last one.
  index_t place(index_t slot) const {
    index_t n = slot;
    for (index_t i = 0; i < few; ++i) n += before_[i] <= slot;
    return n;
  }
  void pass_over(index_t slot) {
    index_t i = gone_++;
    for (; i > 0 && before_[i - 1] > slot; --i) before_[i] = before_[i - 1] - 1;
    before_[i] = static_cast<std::int32_t>(slot);
  }
  /// Entries behind the last slot go at once: the ordinals of tokens that are taken back come again.
  void drop_tail() {
    while (gone_ > 0 && before_[gone_ - 1] == size()) {
      list_.shrink(list_.size() - 1);
      before_[--gone_] = none;
    }
  }
  /// Nothing is passed over any more.
  void settle() {
    std::int32_t* to = list_.data() + (gone_ > 0 ? before_[0] : 0);
    for (index_t i = 0; i < gone_; ++i) {
      const std::int32_t* from = list_.data() + before_[i] + i + 1;
      const std::int32_t* end = i + 1 < gone_ ? list_.data() + before_[i + 1] + i + 1 : list_.data() + list_.size();
      to = std::copy(from, end, to);
    }
    list_.shrink(list_.size() - gone_);
    std::fill_n(before_, few, none);
    gone_ = 0;
  }

  void make_list() {
    if (listed_) return;
    for (index_t i = 0; i < count_; ++i) list_.append_reserved(static_cast<std::int32_t>(first_ + i));
    listed_ = true;
  }

  Buffer<std::int32_t> list_;
  bool listed_ = false;
  index_t first_ = 0;
  index_t count_ = 0;
  index_t gone_ = 0;  ///< entries of the list whose slots left
  std::int32_t before_[few] = {none, none, none, none, none, none, none, none, none, none, none, none, none, none, none, none};  ///< slots in front of each
};

}  // namespace kvcondense::cache
