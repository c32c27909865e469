#pragma once
// The device's memory: allocations at addresses no host pointer has, never used twice.

#include <cstddef>
#include <map>
#include <memory>
#include <string>

#include "types.hpp"

namespace ptx {

class Memory {
 public:
  enum class Use : u8 { device, constant, host };
  struct Allocation {
    u64 base = 0;
    u64 bytes = 0;
    u8* host = nullptr;  // where the bytes really are
    Use use = Use::device;
    std::unique_ptr<u8[]> owned;
  };

  /// Device memory, filled with 0xff: NaN in every float format, -1 as an integer.
  u64 allocate(u64 bytes, Use use = Use::device);
  /// Host memory that kernels may use too; its address is the host's.
  u64 adopt(void* host, u64 bytes);
  bool release(u64 base);

  Allocation const* find(u64 address) const {
    if (address - last_base_ < last_bytes_) return last_;
    return search(address);
  }
  /// Host address of `bytes` bytes at `address`, or null if they do not lie in one allocation.
  u8* at(u64 address, u64 bytes) const {
    Allocation const* const found = find(address);
    if (!found || bytes > found->bytes - (address - found->base)) return nullptr;
    return found->host + (address - found->base);
  }
  /// Where `address` lies, in words, for messages.
  std::string describe(u64 address) const;

  u64 in_use() const { return in_use_; }

 private:
  Allocation const* search(u64 address) const;

  std::map<u64, Allocation> allocations_;
  std::map<u64, u64> released_;
  u64 next_ = device_window + (u64{1} << 20);
  u64 in_use_ = 0;
  mutable Allocation const* last_ = nullptr;
  mutable u64 last_base_ = 0, last_bytes_ = 0;
};

}  // namespace ptx
