#include "memory.hpp"

#include <cstring>

namespace ptx {

u64 Memory::allocate(u64 bytes, Use use) {
  Allocation made;
  made.base = next_;
  made.bytes = bytes;
  made.owned = std::make_unique<u8[]>(bytes + 16);  // a widened load may reach beyond
  made.host = made.owned.get();
  made.use = use;
  std::memset(made.host, 0xff, bytes);
  // Far apart, so that an overrun does not land in the next allocation.
  next_ += (bytes + (u64{1} << 16) + 255) / 256 * 256;
  in_use_ += bytes;
  u64 const base = made.base;
  allocations_.emplace(base, std::move(made));
  return base;
}

u64 Memory::adopt(void* host, u64 bytes) {
  u64 const base = reinterpret_cast<u64>(host);
  released_.erase(base);
  Allocation made;
  made.base = base;
  made.bytes = bytes;
  made.host = static_cast<u8*>(host);
  made.use = Use::host;
  allocations_.insert_or_assign(base, std::move(made));
  last_ = nullptr, last_bytes_ = 0;
  return base;
}

bool Memory::release(u64 base) {
  auto const found = allocations_.find(base);
  if (found == allocations_.end()) return false;
  if (found->second.use != Use::host) {
    released_[base] = found->second.bytes;
    in_use_ -= found->second.bytes;
  }
  allocations_.erase(found);
  last_ = nullptr, last_bytes_ = 0;
  return true;
}

Memory::Allocation const* Memory::search(u64 address) const {
  auto after = allocations_.upper_bound(address);
  if (after == allocations_.begin()) return nullptr;
  Allocation const& before = (--after)->second;
  if (address - before.base >= before.bytes) return nullptr;
  last_ = &before, last_base_ = before.base, last_bytes_ = before.bytes;
  return &before;
}

std::string Memory::describe(u64 address) const {
  if (address == 0) return "a null pointer";
  auto const text = [](u64 n) { return std::to_string(n); };
  if (auto after = released_.upper_bound(address); after != released_.begin()) {
    --after;
    if (address - after->first < after->second)
      return "byte " + text(address - after->first) + " of memory that was freed";
  }
  if (Allocation const* const in = find(address))
    return "byte " + text(address - in->base) + " of an allocation of " + text(in->bytes);
  auto after = allocations_.upper_bound(address);
  if (after != allocations_.end() && after->first - address <= 4096)
    return text(after->first - address) + " bytes before an allocation of " +
           text(after->second.bytes);
  if (after != allocations_.begin()) {
    --after;
    u64 const past = address - after->first - after->second.bytes;
    if (past < (u64{1} << 16))
      return text(past) + " bytes past an allocation of " + text(after->second.bytes);
  }
  return "no allocation";
}

}  // namespace ptx
