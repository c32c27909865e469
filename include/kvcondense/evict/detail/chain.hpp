#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include <kvcondense/core/config.hpp>

namespace kvcondense::evict::detail {

/// One block in place, and how to call it.
template <class Table>
struct Link {
  static constexpr std::size_t room = 192;
  alignas(16) std::byte bytes[room] = {};
  const Table* table = nullptr;
};

/// A trivially copyable chain of links. A block that wraps another (its member `base`) lies one link
/// above it. An empty chain, or one that would be too long, is null.
template <class Table>
class Chain {
 public:
  static constexpr int depth = 4;
  const Link<Table>* top() const { return links_ == 0 ? nullptr : &link_[links_ - 1]; }

 protected:
  template <class Block>
  void push(const Block& block, const Table& table) {
    static_assert(std::is_trivially_copyable_v<Block> && sizeof(Block) <= Link<Table>::room,
                  "kvcondense: a block chosen at run time is trivially copyable and has at most 192 "
                  "bytes; let it borrow what is larger.");
    if (links_ == depth) {
      links_ = 0;
      return;
    }
    std::memcpy(link_[links_].bytes, &block, sizeof(Block));
    link_[links_++].table = &table;
  }

 private:
  Link<Table> link_[depth];
  int links_ = 0;
};

/// The block of a link. `base` of a wrapper is connected to the link below.
template <class Block, class Table>
Block block_at(const Link<Table>* at) {
  Block block;
  std::memcpy(static_cast<void*>(&block), at->bytes, sizeof(Block));
  if constexpr (requires { block.base.at; }) block.base.at = at - 1;
  return block;
}

}  // namespace kvcondense::evict::detail
