#pragma once
// A block's shared memory, with a shadow of every byte: whether it was written, and who wrote and
// read it last, so that reads before writes and races between lanes are faults.

#include <algorithm>
#include <bit>
#include <vector>

#include "types.hpp"

namespace ptx {

class SharedMemory {
 public:
  /// Strong accesses (volatile, relaxed, atomic) do not race with one another. A copy is written
  /// when it is issued and again when it lands; between, nobody may touch its bytes.
  enum class Access : u8 { read, write, strong_read, strong_write, atomic, copy_issue, copy_land };

  void resize(u32 bytes, u32 warps);
  /// A new block begins: nothing written, every byte 0xff.
  void reset();
  u32 size() const { return size_; }

  /// All warps have met.
  void block_barrier();
  /// The lanes of one warp have met.
  void warp_barrier(u32 warp);

  /// Checks an access and gives where the bytes are. `used`: the bytes that are wanted; others are
  /// not looked at, and may even lie beyond the end.
  u8* access(u64 address, u32 bytes, u32 warp, u32 lane, Access how, u32 used = ~u32{0}) {
    if (address % bytes != 0) misaligned(address, bytes, lane, how);
    for (u32 from = 0; from < bytes;) {
      u32 const unused = std::min<u32>(static_cast<u32>(std::countr_zero(used >> from)), bytes - from);
      from += unused;
      if (from == bytes) break;
      u32 const count = std::min<u32>(static_cast<u32>(std::countr_one(used >> from)), bytes - from);
      u64 const at = address + from;
      if (at + count > size_ || at + count < at) out_of_bounds(at, count, lane, how);
      shadow(static_cast<u32>(at), count, warp, lane, how);
      from += count;
    }
    return bytes_.data() + address;
  }

 private:
  void shadow(u32 address, u32 bytes, u32 warp, u32 lane, Access how);
  bool conflicts(u32 tag, u32 thread, u32 epoch) const;
  u32 joined(u32 old, u32 thread, u32 epoch, bool strong) const;
  void next_epoch(u32& epoch);
  [[noreturn]] void race(u32 address, u32 tag, u32 warp, u32 lane, bool write, bool wrote) const;
  [[noreturn]] void misaligned(u64 address, u32 bytes, u32 lane, Access how) const;
  [[noreturn]] void out_of_bounds(u64 address, u32 bytes, u32 lane, Access how) const;

  std::vector<u8> bytes_;  // and a few that nobody uses
  u32 size_ = 0;
  std::vector<u8> state_;           // of each byte: unwritten, written, in flight
  std::vector<u32> wrote_, read_;   // tags
  std::vector<u32> epochs_;         // of each warp: grows at its barriers
  u32 floor_ = 1;                   // epoch of the last barrier of the block
};

}  // namespace ptx
