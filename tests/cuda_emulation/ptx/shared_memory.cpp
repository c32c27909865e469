#include "shared_memory.hpp"

namespace ptx {
namespace {

// A tag: who touched a byte last, and in which epoch of its warp. The flags tell that others did
// too: lanes of the same warp since its last barrier, or other warps since the block's.
constexpr u32 thread_bits = 0x3ff, other_lanes = 0x400, other_warps = 0x800, strong_bit = 0x1000;
constexpr u32 epoch_shift = 13, epoch_limit = (1U << (32 - epoch_shift)) - 2;
constexpr u8 unwritten = 0, written = 1, in_flight = 2;

bool is_write(SharedMemory::Access how) {
  return how != SharedMemory::Access::read && how != SharedMemory::Access::strong_read;
}

}  // namespace

void SharedMemory::resize(u32 bytes, u32 warps) {
  size_ = bytes;
  bytes_.resize(bytes + 16), state_.resize(bytes), wrote_.resize(bytes), read_.resize(bytes);
  epochs_.resize(warps);
}

void SharedMemory::reset() {
  std::fill(bytes_.begin(), bytes_.end(), u8{0xff});
  std::fill(state_.begin(), state_.end(), unwritten);
  std::fill(wrote_.begin(), wrote_.end(), 0U);
  std::fill(read_.begin(), read_.end(), 0U);
  std::fill(epochs_.begin(), epochs_.end(), 1U);
  floor_ = 1;
}

void SharedMemory::block_barrier() {
  u32 top = *std::max_element(epochs_.begin(), epochs_.end());
  next_epoch(top);
  std::fill(epochs_.begin(), epochs_.end(), top);
  floor_ = top;
}

void SharedMemory::warp_barrier(u32 warp) { next_epoch(epochs_[warp]); }

void SharedMemory::next_epoch(u32& epoch) {
  if (++epoch < epoch_limit) return;
  // Half a million barriers in one block: forget who touched what, and count again.
  std::fill(wrote_.begin(), wrote_.end(), 0U);
  std::fill(read_.begin(), read_.end(), 0U);
  std::fill(epochs_.begin(), epochs_.end(), 1U);
  epoch = floor_ = 1;
}

bool SharedMemory::conflicts(u32 tag, u32 thread, u32 epoch) const {
  u32 const when = tag >> epoch_shift, who = tag & thread_bits;
  if (when < floor_) return false;
  if (tag & other_warps) return true;
  if (who / warp_size != thread / warp_size) return true;
  return when >= epoch && (who != thread || (tag & other_lanes));
}

u32 SharedMemory::joined(u32 old, u32 thread, u32 epoch, bool strong) const {
  u32 tag = epoch << epoch_shift | (strong ? strong_bit : 0) | thread;
  u32 const when = old >> epoch_shift, who = old & thread_bits;
  if (when < floor_) return tag;
  tag |= old & other_warps;
  if (who / warp_size != thread / warp_size)
    tag |= other_warps;
  else if (when >= epoch)
    tag |= (who != thread ? other_lanes : 0) | (old & other_lanes);
  return tag;
}

void SharedMemory::shadow(u32 address, u32 bytes, u32 warp, u32 lane, Access how) {
  bool const write = is_write(how);
  bool const strong =
      how == Access::strong_read || how == Access::strong_write || how == Access::atomic;
  bool const needs_value = !write || how == Access::atomic;
  u32 const thread = warp * warp_size + lane, epoch = epochs_[warp];
  u32 const end = address + bytes;
  for (u32 b = address; b < end; ++b) {
    if (state_[b] == written) continue;
    if (state_[b] == in_flight && how != Access::copy_land)
      throw Fault("shared memory touched while cp.async still copies to it: lane " +
                  std::to_string(lane) + (write ? " writes" : " reads") + " address " +
                  std::to_string(b) + "; it must wait for the copy, and others for a barrier");
    if (state_[b] == unwritten && needs_value)
      throw Fault("shared memory read before it was written: lane " + std::to_string(lane) +
                  " reads address " + std::to_string(b));
  }
  u32 last_wrote = 0, last_read = 0, new_wrote = 0, new_read = 0;
  for (u32 b = address; b < end; ++b) {
    u32 const w = wrote_[b], r = read_[b];
    if (b == address || w != last_wrote || r != last_read) {  // neighbours mostly share their fate
      last_wrote = w, last_read = r, new_wrote = w, new_read = r;
      if (conflicts(w, thread, epoch) && !(strong && (w & strong_bit)))
        race(b, w, warp, lane, write, true);
      if (write && conflicts(r, thread, epoch) && !(strong && (r & strong_bit)))
        race(b, r, warp, lane, write, false);
      if (write && strong)
        new_wrote = w & strong_bit ? joined(w, thread, epoch, true)
                                   : epoch << epoch_shift | strong_bit | thread;
      else if (write)
        new_wrote = epoch << epoch_shift | thread;
      else if (!strong || r >> epoch_shift < floor_ || (r & strong_bit))
        new_read = joined(r, thread, epoch, strong);
    }
    wrote_[b] = new_wrote, read_[b] = new_read;
  }
  if (write)
    std::fill_n(state_.begin() + address, bytes, how == Access::copy_issue ? in_flight : written);
}

void SharedMemory::race(u32 address, u32 tag, u32 warp, u32 lane, bool write, bool wrote) const {
  u32 const who = tag & thread_bits;
  throw Fault("race in shared memory: warp " + std::to_string(warp) + " lane " +
              std::to_string(lane) + (write ? " writes" : " reads") + " address " +
              std::to_string(address) + ", which warp " + std::to_string(who / warp_size) +
              " lane " + std::to_string(who % warp_size) + (wrote ? " wrote" : " read") +
              " with no barrier between");
}

void SharedMemory::misaligned(u64 address, u32 bytes, u32 lane, Access how) const {
  throw Fault("misaligned shared memory " + std::string(is_write(how) ? "write" : "read") +
              " of " + std::to_string(bytes) + " bytes at " + std::to_string(address) + ", lane " +
              std::to_string(lane));
}

void SharedMemory::out_of_bounds(u64 address, u32 bytes, u32 lane, Access how) const {
  throw Fault("shared memory " + std::string(is_write(how) ? "write" : "read") +
              " out of bounds: " + std::to_string(bytes) + " bytes at " + std::to_string(address) +
              " of " + std::to_string(size()) + ", lane " + std::to_string(lane));
}

}  // namespace ptx
