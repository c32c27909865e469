#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::reuse {

/// Keeps prefixes as a tree whose edges are runs of tokens, and finds the longest one to the token.
///
/// Idea     sequences that begin alike share the path from the root; an edge splits where a new sequence leaves it.
///          Paths of running sequences are locked, the least recently used leaf goes first.
/// Source   SGLang, RadixAttention, arXiv:2312.07104.
/// Needs    token ids, and for every token the slot that holds its keys and values (a row, or a page of `page`).
/// Shapes   matches are whole multiples of `page` tokens; 1: to the token.
/// Cost     one comparison per token of the path, one look at each child of a node on it; an eviction looks at all
///          nodes.
/// Numbers  exact.
/// Errors   invalid_argument: lengths that differ, a node that is none or is not locked; out_of_memory. The tree is then
///          as it was.
class RadixTree {
 public:
  static constexpr Descriptor about{"radix_tree", Stage::reuse, "arXiv:2312.07104"};

  /// The longest stored beginning of a list of tokens.
  struct Match {
    index_t tokens = 0;  ///< how many are stored
    index_t node = 0;    ///< where the match ends, for `lock`
  };

  static Expected<RadixTree> make(index_t page = 1, MemoryResource<Cpu>& memory = heap_memory()) {
    if (page < 1) return Status::invalid_argument;
    RadixTree t(memory);
    t.page_ = page;
    if (const Status s = t.nodes_.resize(1); s != Status::ok) return s;
    return Expected<RadixTree>(std::move(t));
  }

  /// Tokens stored in all edges together.
  index_t tokens() const { return total_; }
  index_t nodes() const { return nodes_.size() - unused_; }

  /// The longest stored prefix; its slots into `slots`, which holds as many as `tokens` or is empty. The path counts
  /// as used.
  Expected<Match> find(std::span<const std::int32_t> tokens, std::span<index_t> slots = {}) {
    if (!slots.empty() && slots.size() < tokens.size()) return Status::invalid_argument;
    ++clock_;
    Match m;
    for (;;) {
      nodes_[m.node].used = clock_;
      const index_t child = child_of(m.node, tokens, m.tokens);
      if (child == none) return m;
      const index_t same = common(child, tokens, m.tokens);
      for (index_t i = 0; i < same && !slots.empty(); ++i)
        slots[static_cast<std::size_t>(m.tokens + i)] = slots_[nodes_[child].first + i];
      m.tokens += same;
      nodes_[child].used = clock_;
      if (same == nodes_[child].count) {
        m.node = child;
        continue;
      }
      if (same > 0) {  // inside an edge: split it, so that the match ends at a node
        const Status s = split(child, same);
        if (s != Status::ok) return s;
        m.node = nodes_[child].parent;
      }
      return m;
    }
  }

  /// Stores a sequence with the slots of its tokens; only whole pages, and what is there already keeps its slots.
  /// Returns how many tokens were there.
  Expected<index_t> insert(std::span<const std::int32_t> tokens, std::span<const index_t> slots) {
    if (tokens.size() != slots.size()) return Status::invalid_argument;
    const auto whole = static_cast<std::size_t>(static_cast<index_t>(tokens.size()) / page_ * page_);
    // All that may be needed first: the edge, a node for it, one for a split.
    if (const Status s = tokens_.reserve(tokens_.size() + static_cast<index_t>(whole)); s != Status::ok) return s;
    if (const Status s = slots_.reserve(slots_.size() + static_cast<index_t>(whole)); s != Status::ok) return s;
    if (const Status s = nodes_.reserve(nodes_.size() + 2); s != Status::ok) return s;
    const auto m = find(tokens.first(whole));
    if (!m) return m.status();
    const index_t rest = static_cast<index_t>(whole) - m->tokens;
    if (rest == 0) return m->tokens;
    const index_t n = new_node();
    nodes_[n] = {m->node, tokens_.size(), rest, 0, 0, clock_, true};
    ++nodes_[m->node].children;
    for (std::size_t i = static_cast<std::size_t>(m->tokens); i < whole; ++i)
      tokens_.append_reserved(tokens[i]), slots_.append_reserved(slots[i]);
    total_ += rest;
    return m->tokens;
  }

  /// A running sequence holds the path to a node, or lets it go.
  Status lock(index_t node) { return change_locks(node, 1); }
  Status unlock(index_t node) { return change_locks(node, -1); }

  /// Lets leaves go, least recently used first, until at least `wanted` tokens are gone or no leaf is free. Calls
  /// freed(slot) for every token's slot. Returns how many tokens went.
  template <class Freed>
  index_t evict(index_t wanted, Freed&& freed) {
    index_t gone = 0;
    while (gone < wanted) {
      index_t best = none;
      for (index_t n = 1; n < nodes_.size(); ++n)
        if (nodes_[n].live && nodes_[n].children == 0 && nodes_[n].locks == 0 && (best == none || nodes_[n].used < nodes_[best].used))
          best = n;
      if (best == none) break;
      Node& leaf = nodes_[best];
      for (index_t i = 0; i < leaf.count; ++i) freed(slots_[leaf.first + i]);
      gone += leaf.count, total_ -= leaf.count;
      --nodes_[leaf.parent].children;
      leaf.live = false;
      ++unused_;
    }
    if (tokens_.size() > 2 * total_ + 64) pack();
    return gone;
  }

 private:
  static constexpr index_t none = -1;
  struct Node {
    index_t parent = none, first = 0, count = 0;  // the edge above it: tokens_[first, first + count)
    index_t children = 0, locks = 0, used = 0;
    bool live = true;
  };

  explicit RadixTree(MemoryResource<Cpu>& memory) : nodes_(memory), tokens_(memory), slots_(memory) {}

  index_t child_of(index_t node, std::span<const std::int32_t> tokens, index_t at) const {
    if (nodes_[node].children == 0 || static_cast<index_t>(tokens.size()) < at + page_) return none;
    for (index_t n = 1; n < nodes_.size(); ++n)
      if (nodes_[n].live && nodes_[n].parent == node && common(n, tokens, at) > 0) return n;
    return none;
  }
  /// Tokens of an edge that agree with `tokens` from `at` on, in whole pages.
  index_t common(index_t node, std::span<const std::int32_t> tokens, index_t at) const {
    const index_t most = std::min(nodes_[node].count, static_cast<index_t>(tokens.size()) - at);
    index_t n = 0;
    while (n < most && tokens_[nodes_[node].first + n] == tokens[static_cast<std::size_t>(at + n)]) ++n;
    return n / page_ * page_;
  }

  index_t new_node() {
    for (index_t n = 1; unused_ > 0 && n < nodes_.size(); ++n)
      if (!nodes_[n].live) return --unused_, n;
    nodes_.append_reserved({});
    return nodes_.size() - 1;
  }
  /// The first `count` tokens of the edge above `node` become an edge of their own.
  Status split(index_t node, index_t count) {
    if (unused_ == 0)
      if (const Status s = nodes_.reserve(nodes_.size() + 1); s != Status::ok) return s;
    const index_t upper = new_node();
    Node& lower = nodes_[node];
    nodes_[upper] = {lower.parent, lower.first, count, 1, lower.locks, lower.used, true};
    lower.parent = upper;
    lower.first += count, lower.count -= count;
    return Status::ok;
  }

  Status change_locks(index_t node, index_t by) {
    if (node < 0 || node >= nodes_.size() || !nodes_[node].live) return Status::invalid_argument;
    for (index_t n = node; by < 0 && n > 0; n = nodes_[n].parent)
      if (nodes_[n].locks == 0) return Status::invalid_argument;
    for (index_t n = node; n > 0; n = nodes_[n].parent) nodes_[n].locks += by;
    return Status::ok;
  }

  /// Closes the gaps that edges left: live edges move to the front, in the order in which they lie.
  void pack() {
    index_t to = 0;
    for (index_t at = 0; at < tokens_.size();) {
      index_t next = none;
      for (index_t n = 1; n < nodes_.size(); ++n)
        if (nodes_[n].live && nodes_[n].first >= at && (next == none || nodes_[n].first < nodes_[next].first)) next = n;
      if (next == none) break;
      Node& e = nodes_[next];
      at = e.first + e.count;
      for (index_t i = 0; i < e.count; ++i) tokens_[to + i] = tokens_[e.first + i], slots_[to + i] = slots_[e.first + i];
      e.first = to;
      to += e.count;
    }
    tokens_.shrink(to), slots_.shrink(to);
  }

  index_t page_ = 1, clock_ = 0, total_ = 0, unused_ = 0;
  Buffer<Node> nodes_;
  Buffer<std::int32_t> tokens_;
  Buffer<index_t> slots_;
};

}  // namespace kvcondense::reuse
