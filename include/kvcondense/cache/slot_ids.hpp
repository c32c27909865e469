#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/cache/kept.hpp>
#include <kvcondense/core/buffer.hpp>

namespace kvcondense::cache {

/// Which token each slot of a head holds: its ordinal among all tokens ever appended, ascending.
///
/// As long as nothing has left the middle, ordinals are consecutive and cost no memory.
class SlotIds {
 public:
  SlotIds() = default;
  explicit SlotIds(MemoryResource<Cpu>& memory) : list_(memory) {}

  index_t size() const { return listed_ ? list_.size() : count_; }
  bool listed() const { return listed_; }
  std::size_t bytes() const { return list_.bytes(); }
  index_t operator[](index_t slot) const { return listed_ ? list_[slot] : first_ + slot; }

  /// Room so that `keep` and `append(n)` cannot fail.
  Status reserve(index_t n) {
    return listed_ ? list_.reserve(list_.size() + n) : Status::ok;
  }
  Status reserve_list() { return list_.reserve(size()); }

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
    if (const Status s = list_.reserve(size() + n); s != Status::ok) return s;
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
        list_.shrink(n);
      }
      return;
    }
    make_list();
    gather_down(list_.data(), kept);
    list_.shrink(n);
  }

  void pop_back(index_t n) {
    if (listed_) list_.shrink(list_.size() - n);
    else count_ -= n;
  }

  /// Number of slots whose token is below `ordinal`.
  index_t below(index_t ordinal) const {
    if (!listed_) return std::clamp<index_t>(ordinal - first_, 0, count_);
    return std::lower_bound(list_.begin(), list_.end(), ordinal) - list_.begin();
  }

  Status fork(SlotIds& out) const {
    out.listed_ = listed_, out.first_ = first_, out.count_ = count_;
    return listed_ ? out.list_.copy_from(list_) : Status::ok;
  }

  void give_back() { list_.give_back(size()); }

  void clear() {
    list_.shrink(0);
    listed_ = false;
    first_ = count_ = 0;
  }

 private:
  void make_list() {
    if (listed_) return;
    for (index_t i = 0; i < count_; ++i) list_.append_reserved(static_cast<std::int32_t>(first_ + i));
    listed_ = true;
  }

  Buffer<std::int32_t> list_;
  bool listed_ = false;
  index_t first_ = 0;
  index_t count_ = 0;
};

}  // namespace kvcondense::cache
