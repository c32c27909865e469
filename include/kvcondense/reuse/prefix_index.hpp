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

/// FNV-1a over the hash of the block before (0 at the root) and the block's tokens, little endian.
constexpr std::uint64_t block_hash(std::uint64_t parent, std::span<const std::int32_t> tokens) {
  std::uint64_t h = 0xcbf29ce484222325ull;
  const auto add = [&](std::uint64_t x, int bytes) {
    for (int i = 0; i < bytes; ++i) h = (h ^ (x >> (8 * i) & 0xff)) * 0x100000001b3ull;
  };
  add(parent, 8);
  for (const std::int32_t t : tokens) add(static_cast<std::uint32_t>(t), 4);
  return h;
}

/// Finds the stored blocks that a new sequence begins with.
///
/// Idea     a full block of tokens is known by a hash of its tokens and of the block before it, so one look per
///          block finds the longest stored prefix; blocks that no running sequence holds stay until room is needed.
/// Source   automatic prefix caching of PagedAttention, arXiv:2309.06180. A tree instead: `RadixTree`. Whole batches
///          that are known ahead: `PrefixGroups`.
/// Needs    token ids; a seed for whatever else must match (adapter, image, tenant).
/// Shapes   blocks of `block` tokens; only full blocks are shared.
/// Cost     one hash and about one comparison of tokens per block; an eviction looks at all blocks.
/// Numbers  a hit is compared token by token: a collision of hashes is a miss, never a wrong block. What leaves first
///          is the least recently used block without a holder that no stored block follows, deeper ones first.
/// Errors   out_of_memory: every block is held, or the resource said no; invalid_argument. Nothing changes then.
class PrefixIndex {
 public:
  static constexpr Descriptor about{"prefix_index", Stage::reuse, "arXiv:2309.06180"};

  /// At most `blocks` blocks; their numbers 0 .. blocks - 1 are the caller's places for keys and values.
  static Expected<PrefixIndex> make(index_t blocks, index_t block, MemoryResource<Cpu>& memory = heap_memory()) {
    if (blocks < 1 || block < 1 || blocks > (index_t{1} << 40) / block) return Status::invalid_argument;
    PrefixIndex p(memory);
    p.block_ = block;
    index_t slots = 2;
    while (slots < 2 * blocks) slots *= 2;
    if (const Status s = p.nodes_.resize(blocks); s != Status::ok) return s;
    if (const Status s = p.tokens_.resize(blocks * block); s != Status::ok) return s;
    if (const Status s = p.table_.resize(slots, none); s != Status::ok) return s;
    return Expected<PrefixIndex>(std::move(p));
  }

  index_t block_tokens() const { return block_; }
  index_t stored() const { return stored_; }
  index_t holders(index_t b) const { return nodes_[b].holders; }

  /// The stored blocks that `tokens` begins with, in order, into `out`; none is held by it. Returns how many.
  index_t find(std::span<const std::int32_t> tokens, std::span<index_t> out, std::uint64_t seed = 0) const {
    index_t n = 0, parent = none;
    std::uint64_t hash = seed;
    for (const index_t most = std::min(static_cast<index_t>(tokens.size()) / block_, static_cast<index_t>(out.size())); n < most; ++n) {
      const auto part = tokens.subspan(static_cast<std::size_t>(n * block_), static_cast<std::size_t>(block_));
      hash = block_hash(hash, part);
      const index_t b = look(hash, parent, part);
      if (b == none) break;
      out[static_cast<std::size_t>(n)] = parent = b;
    }
    return n;
  }

  /// Holds the full blocks of `tokens`, stored ones and new ones, into `out` (one per full block). The first
  /// `reused` were there. `evicted(block)` is called for each block that made room.
  template <class Evicted>
  Status hold(std::span<const std::int32_t> tokens, std::span<index_t> out, index_t& reused, Evicted&& evicted, std::uint64_t seed = 0) {
    const index_t full = static_cast<index_t>(tokens.size()) / block_;
    if (static_cast<index_t>(out.size()) < full) return Status::invalid_argument;
    reused = find(tokens, out, seed);
    for (index_t i = 0; i < reused; ++i) ++nodes_[out[static_cast<std::size_t>(i)]].holders;
    if (full - reused > room()) {  // nothing was evicted yet: give the holds back
      for (index_t i = 0; i < reused; ++i) --nodes_[out[static_cast<std::size_t>(i)]].holders;
      return Status::out_of_memory;
    }
    ++clock_;
    std::uint64_t hash = seed;
    for (index_t i = 0; i < full; ++i) {
      const auto part = tokens.subspan(static_cast<std::size_t>(i * block_), static_cast<std::size_t>(block_));
      hash = block_hash(hash, part);
      index_t& b = out[static_cast<std::size_t>(i)];
      if (i >= reused) {
        b = free_block(evicted);
        const index_t parent = i == 0 ? none : out[static_cast<std::size_t>(i - 1)];
        nodes_[b] = {hash, parent, 0, 1, 0, i, true};
        std::copy(part.begin(), part.end(), tokens_.data() + b * block_);
        if (parent != none) ++nodes_[parent].children;
        insert(b);
        ++stored_;
      }
      nodes_[b].used = clock_;
    }
    return Status::ok;
  }
  Status hold(std::span<const std::int32_t> tokens, std::span<index_t> out, index_t& reused, std::uint64_t seed = 0) {
    return hold(tokens, out, reused, [](index_t) {}, seed);
  }

  /// A sequence that held these blocks is over; they stay until room is needed.
  Status release(std::span<const index_t> blocks) {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const index_t b = blocks[i];
      if (b >= 0 && b < nodes_.size() && nodes_[b].stored && nodes_[b].holders > 0) {
        --nodes_[b].holders;
        continue;
      }
      for (std::size_t j = 0; j < i; ++j) ++nodes_[blocks[j]].holders;
      return Status::invalid_argument;
    }
    ++clock_;
    for (const index_t b : blocks) nodes_[b].used = clock_;
    return Status::ok;
  }

 private:
  static constexpr index_t none = -1;
  struct Node {
    std::uint64_t hash = 0;
    index_t parent = none, children = 0, holders = 0, used = 0, depth = 0;
    bool stored = false;
  };

  explicit PrefixIndex(MemoryResource<Cpu>& memory) : nodes_(memory), tokens_(memory), table_(memory) {}

  /// Blocks that are free or may become so: who holds a block holds all before it.
  index_t room() const {
    index_t n = nodes_.size() - stored_;
    for (const Node& b : nodes_) n += b.stored && b.holders == 0 ? 1 : 0;
    return n;
  }

  index_t look(std::uint64_t hash, index_t parent, std::span<const std::int32_t> part) const {
    const index_t mask = table_.size() - 1;
    for (index_t at = static_cast<index_t>(hash) & mask; table_[at] != none; at = (at + 1) & mask) {
      const Node& n = nodes_[table_[at]];
      if (n.hash == hash && n.parent == parent && std::equal(part.begin(), part.end(), tokens_.data() + table_[at] * block_))
        return table_[at];
    }
    return none;
  }
  void insert(index_t b) {
    const index_t mask = table_.size() - 1;
    index_t at = static_cast<index_t>(nodes_[b].hash) & mask;
    while (table_[at] != none) at = (at + 1) & mask;
    table_[at] = b;
  }
  void erase(index_t b) {  // and close the gap, so that later looks still find what was pushed behind it
    const index_t mask = table_.size() - 1;
    index_t at = static_cast<index_t>(nodes_[b].hash) & mask;
    while (table_[at] != b) at = (at + 1) & mask;
    table_[at] = none;
    for (index_t next = (at + 1) & mask; table_[next] != none; next = (next + 1) & mask) {
      const index_t moved = table_[next];
      table_[next] = none;
      insert(moved);
    }
  }

  template <class Evicted>
  index_t free_block(Evicted& evicted) {
    if (stored_ < nodes_.size()) {
      while (nodes_[next_].stored) next_ = (next_ + 1) % nodes_.size();
      return next_;
    }
    index_t best = none;
    for (index_t b = 0; b < nodes_.size(); ++b) {
      const Node& n = nodes_[b];
      if (n.holders > 0 || n.children > 0) continue;
      if (best == none || n.used < nodes_[best].used || (n.used == nodes_[best].used && n.depth > nodes_[best].depth)) best = b;
    }
    erase(best);
    if (nodes_[best].parent != none) --nodes_[nodes_[best].parent].children;
    nodes_[best].stored = false;
    --stored_;
    evicted(best);
    return best;
  }

  index_t block_ = 1, stored_ = 0, clock_ = 0, next_ = 0;
  Buffer<Node> nodes_;
  Buffer<std::int32_t> tokens_;
  Buffer<index_t> table_;
};

}  // namespace kvcondense::reuse
