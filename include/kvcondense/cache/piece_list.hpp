#pragma once

#include <cassert>
#include <cstddef>
#include <memory>
#include <span>

#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::cache {

/// Pieces of pages that are read together, so that codecs can begin one before they have ended the one before.
class PieceList {
 public:
  static constexpr std::size_t most = 16;

  PieceList() {}  // for a list of one piece, what it takes to clear room for all of them would be felt

  /// True when no other piece fits: whoever adds reads and clears the list then, before the next one.
  bool add(const prim::PagePiece& piece) {
    assert(count_ < most);
    std::construct_at(&list_[count_++], piece);
    return count_ == most;
  }
  std::span<const prim::PagePiece> all() const { return {list_, count_}; }
  void clear() { count_ = 0; }

 private:
  union {
    prim::PagePiece list_[most];
  };
  std::size_t count_ = 0;
};

}  // namespace kvcondense::cache
