#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>

namespace kvcondense::external {

/// Who shares one list of slots. Rows of a head move by that head's list, so that heads behind one table may keep different tokens as long as they
/// keep as many; where the table itself is per slot (a position or an id of each, pages of others that are copied, `relist`) they share one.
enum class Sharing : std::uint8_t {
  per_head,      ///< nobody: every KV head of every layer keeps what its policy says
  per_layer,     ///< the KV heads of a layer
  per_sequence,  ///< all heads of all layers
};

/// How heads that share a list settle on one.
enum class Agreement : std::uint8_t {
  votes,  ///< as many slots as the head that keeps most of them, those that most heads keep
  any,    ///< what any of them keeps
};

/// Makes one list of kept slots out of those of several heads that hold the same slots.
///
/// Idea     heads vote. What all protect (first tokens, the newest) has all votes and stays; the budget is met exactly, or with
///          `any` nobody loses what it kept, and the budget is exceeded.
/// Source   none; engines with block tables evict so.
/// Needs    lists of kept slots, ascending.
/// Shapes   lists of `slots` slots at most, any number of them.
/// Cost     one number per slot, one per head.
/// Numbers  votes are whole numbers; ties keep the smaller slot.
/// Errors   workspace_too_small.
class Ballot {
 public:
  static std::size_t workspace_bytes(index_t slots, index_t lists) {
    return Scratch::bytes_for<std::int32_t>(slots) + Scratch::bytes_for<index_t>(lists + 1);
  }

  Status begin(index_t slots, index_t lists, Scratch& scratch) {
    slots_ = slots, lists_ = lists, most_ = 0;
    votes_ = scratch.take<std::int32_t>(slots);
    with_ = scratch.take<index_t>(lists + 1);
    if (with_ == nullptr || votes_ == nullptr) return Status::workspace_too_small;
    std::fill_n(votes_, slots, 0);
    return Status::ok;
  }
  void add(const std::int32_t* kept, index_t count) {
    for (index_t i = 0; i < count; ++i) ++votes_[kept[i]];
    most_ = std::max(most_, count);
  }
  /// Writes the list, ascending, and says how long it is: at most what fits `slots`.
  index_t settle(Agreement how, std::int32_t* kept) const {
    std::int32_t least = 1;  // votes that are surely enough
    index_t ties = slots_;
    if (how == Agreement::votes) {
      std::fill_n(with_, lists_ + 1, index_t{0});
      for (index_t j = 0; j < slots_; ++j) ++with_[votes_[j]];
      index_t above = 0, v = lists_;
      for (; v > 1 && above + with_[v] < most_; --v) above += with_[v];
      least = static_cast<std::int32_t>(v), ties = most_ - above;
    }
    index_t n = 0;
    for (index_t j = 0; j < slots_; ++j)
      if (votes_[j] > least || (votes_[j] == least && ties-- > 0)) kept[n++] = static_cast<std::int32_t>(j);
    return n;
  }

 private:
  std::int32_t* votes_ = nullptr;
  index_t* with_ = nullptr;  ///< slots by their votes
  index_t slots_ = 0, lists_ = 0, most_ = 0;
};

}  // namespace kvcondense::external
