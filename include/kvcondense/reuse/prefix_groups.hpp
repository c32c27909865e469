#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <numeric>
#include <span>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::reuse {

/// Sequences of a batch that run together because they begin alike.
struct PrefixGroup {
  index_t first = 0;   ///< in `order`: members are order[first, first + count)
  index_t count = 0;
  index_t tokens = 0;  ///< what they share
};

/// Splits a batch that is known ahead into groups that share one prefix each, so that most tokens are computed once.
///
/// Idea     a tree of all prefixes tells what sharing could save; runs of a batch share one level of it, so at each
///          node either all below share up to here, or its children are better off alone.
/// Source   BatchLLM, arXiv:2412.03594; the choice written as a recursion: saved(v) = max((leaves - 1) depth, sum over
///          children saved(c)).
/// Needs    all sequences of the batch; for `by_decoding` how many tokens each will generate.
/// Shapes   one group per sequence at most; sequences that share nothing are groups of one.
/// Cost     a sort of the sequences, then neighbours are compared once per level of the tree.
/// Numbers  exact; of equal savings the deeper split.
/// Differs  the authors reach the single level by a rule that forks children. At a node all share up to it or each
///          child is on its own; sharing by some children only, which may save a little more, is not looked at.
/// Errors   out_of_memory, the groups are then empty.
class PrefixGroups {
 public:
  static constexpr Descriptor about{"prefix_groups", Stage::reuse, "arXiv:2412.03594"};

  explicit PrefixGroups(MemoryResource<Cpu>& memory = heap_memory()) : order_(memory), same_(memory), groups_(memory) {}

  Status run(std::span<const std::span<const std::int32_t>> sequences) {
    order_.shrink(0), same_.shrink(0), groups_.shrink(0);
    saved_ = ideal_ = 0;
    const auto n = static_cast<index_t>(sequences.size());
    if (const Status s = order_.resize(n); s != Status::ok) return s;
    if (const Status s = same_.resize(n); s != Status::ok) return order_.shrink(0), s;
    if (const Status s = groups_.reserve(n); s != Status::ok) return order_.shrink(0), same_.shrink(0), s;
    std::iota(order_.begin(), order_.end(), index_t{0});
    const auto at = [&](index_t i) { return sequences[static_cast<std::size_t>(order_[i])]; };
    std::sort(order_.begin(), order_.end(), [&](index_t a, index_t b) {
      const auto& x = sequences[static_cast<std::size_t>(a)];
      const auto& y = sequences[static_cast<std::size_t>(b)];
      const auto d = std::lexicographical_compare_three_way(x.begin(), x.end(), y.begin(), y.end());
      return d == 0 ? a < b : d < 0;
    });
    for (index_t i = 1; i < n; ++i) {  // what a sequence shares with the one before it
      const auto x = at(i - 1), y = at(i);
      same_[i] = std::mismatch(x.begin(), x.end(), y.begin(), y.end()).first - x.begin();
      ideal_ += same_[i];
    }
    saved_ = n == 0 ? 0 : solve(0, n, 0);
    return Status::ok;
  }

  std::span<const index_t> order() const { return order_.span(); }
  std::span<const PrefixGroup> groups() const { return groups_.span(); }
  index_t saved() const { return saved_; }  ///< tokens that need no computing, with these groups
  index_t ideal() const { return ideal_; }  ///< with sharing at every level

  /// Orders groups by generated tokens per prompt token, most first: long answers start early and overlap with the
  /// prompts of others.
  void by_decoding(std::span<const std::span<const std::int32_t>> sequences, std::span<const index_t> generated) {
    const auto ratio = [&](const PrefixGroup& g) {
      double prompt = static_cast<double>(g.tokens), answer = 0;
      for (index_t i = g.first; i < g.first + g.count; ++i) {
        const auto s = static_cast<std::size_t>(order_[i]);
        prompt += static_cast<double>(static_cast<index_t>(sequences[s].size()) - g.tokens);
        answer += static_cast<double>(generated[s]);
      }
      return answer / std::max(prompt, 1.0);
    };
    std::stable_sort(groups_.begin(), groups_.end(), [&](const PrefixGroup& a, const PrefixGroup& b) { return ratio(a) > ratio(b); });
  }

 private:
  static constexpr index_t most_levels = 512;  ///< of the tree that are looked at: what is deeper stays together

  /// Groups of the sequences [begin, end), and what they save.
  index_t solve(index_t begin, index_t end, index_t level) {
    if (end - begin == 1) {
      groups_.append_reserved({begin, 1, 0});
      return 0;
    }
    index_t shared = same_[begin + 1];
    for (index_t i = begin + 1; i < end; ++i) shared = std::min(shared, same_[i]);
    const index_t together = (end - begin - 1) * shared, mark = groups_.size();
    index_t apart = 0;
    for (index_t from = begin; level < most_levels && from < end;) {  // children: runs that share more
      index_t to = from + 1;
      while (to < end && same_[to] > shared) ++to;
      apart += solve(from, to, level + 1);
      from = to;
    }
    if (level < most_levels && apart >= together) return apart;
    groups_.shrink(mark);
    groups_.append_reserved({begin, end - begin, shared});
    return together;
  }

  index_t saved_ = 0, ideal_ = 0;
  Buffer<index_t> order_, same_;
  Buffer<PrefixGroup> groups_;
};

}  // namespace kvcondense::reuse
