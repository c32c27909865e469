#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/retrieve/blocks/unit_state.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::cache {

/// Units that a schedule goes on reading in later steps, on the device: set by a step, read by calls of `attend`.
///
/// What the host writes for kernels lies in steering memory, twice: a step writes the half that no call reads any more, since it has waited for
/// the step before, and calls between two steps read the other.
class CudaHeld {
 public:
  /// Of one half, per row of selection or KV head.
  struct Half {
    index_t* offset = nullptr;  ///< rows + 1: where the units of a row begin
    index_t *first = nullptr, *last = nullptr;   ///< units [first, last) competed
    index_t *slots = nullptr, *known = nullptr;  ///< when they were chosen
  };

  explicit CudaHeld(MemoryResource<Cuda>& memory) : units_{cuda::DeviceArray<std::int32_t>(memory), cuda::DeviceArray<std::int32_t>(memory)}, count_(memory) {}

  static std::size_t steering_bytes(index_t rows, index_t heads) {
    return 2 * (Scratch::bytes_for<index_t>(rows + 1) + 4 * Scratch::bytes_for<index_t>(heads)) + Scratch::align;
  }
  Status make(index_t rows, index_t heads, std::span<std::byte> steering) {
    rows_ = rows, heads_ = heads;
    Scratch scratch(steering);
    for (Half& h : half_) {
      h.offset = scratch.take<index_t>(rows + 1);
      for (index_t** p : {&h.first, &h.last, &h.slots, &h.known}) *p = scratch.take<index_t>(heads);
    }
    return count_.resize(2 * rows);
  }

  bool valid() const { return made_ >= 0; }
  void drop() { made_ = -1; }
  /// Of calls of `attend`.
  const Half& now() const { return half_[at_]; }
  RaggedView<const std::int32_t> units() const { return {units_[at_].data(), now().offset, rows_}; }
  const index_t* count() const { return count_.data() + at_ * rows_; }
  std::size_t bytes() const {
    return static_cast<std::size_t>(units_[0].size() + units_[1].size()) * sizeof(std::int32_t) + static_cast<std::size_t>(count_.size()) * sizeof(index_t);
  }

  /// Room for so many units in the half that is written next; the stream is waited for where it grows.
  Status reserve(const Context<Cuda>& ctx, index_t units) {
    auto& room = units_[1 - at_];
    if (room.size() >= units) return Status::ok;
    if (const Status s = ctx.wait(); s != Status::ok) return s;
    return room.resize(std::max(units, 2 * room.size()));
  }
  /// The half to write, after `reserve`; from `turn` on it is the one that is read.
  const Half& next() const { return half_[1 - at_]; }
  retrieve::UnitLists next_lists() { return {{units_[1 - at_].data(), next().offset, rows_}, count_.data() + (1 - at_) * rows_}; }
  void turn(index_t made) { at_ = 1 - at_, made_ = made; }

  void truncate(index_t tokens) {
    if (tokens < made_) drop();
  }
  /// Behind what the stream has to do.
  Status fork(const Context<Cuda>& ctx, CudaHeld& out) const {
    out.at_ = at_, out.made_ = made_;
    if (!valid()) return Status::ok;
    const Half &from = now(), &to = out.now();
    std::copy_n(from.offset, rows_ + 1, to.offset);
    for (const auto& [a, b] : {std::pair(from.first, to.first), std::pair(from.last, to.last), std::pair(from.slots, to.slots), std::pair(from.known, to.known)})
      std::copy_n(a, heads_, b);
    const Status s = out.units_[at_].copy_from(ctx, units_[at_]);
    return s == Status::ok ? out.count_.copy_from(ctx, count_) : s;
  }

  /// As `save_held` writes those of the host; waits for the stream.
  void save(ByteWriter& w, const Context<Cuda>& ctx) const {
    w.put(made_);
    if (!valid()) return;
    const Half& h = now();
    Buffer<std::int32_t> units(heap_memory());
    Buffer<index_t> count(heap_memory());
    Status s = units.resize(h.offset[rows_]);
    if (s == Status::ok) s = count.resize(2 * rows_);
    if (s == Status::ok) s = units_[at_].download(ctx, {units.data(), static_cast<std::size_t>(units.size())});
    if (s == Status::ok) s = count_.download(ctx, {count.data(), static_cast<std::size_t>(count.size())});
    const Status done = ctx.wait();
    if (s != Status::ok || done != Status::ok) return w.fail(s != Status::ok ? s : done);
    for (const index_t* p : {h.slots, h.known})
      for (index_t i = 0; i < heads_; ++i) w.put(p[i]);
    for (index_t r = 0; r < rows_; ++r) {
      const index_t n = count[at_ * rows_ + r];
      w.put(static_cast<std::uint32_t>(n));
      for (index_t i = 0; i < n; ++i) w.put(units[h.offset[r] + i] + static_cast<std::int32_t>(h.first[r * heads_ / rows_]));
    }
  }
  /// Into an empty one; `seen`: tokens of the layer, `candidates(half, head)`: which units competed. The stream is waited for.
  template <class Candidates>
  Status load(ByteReader& r, const Context<Cuda>& ctx, index_t seen, Candidates&& candidates) {
    index_t made = -1;
    if (!r.read(made) || made < -1 || made > seen) return Status::corrupt_data;
    if (made < 0) return Status::ok;
    const Half& h = now();
    for (index_t* p : {h.slots, h.known})
      for (index_t i = 0; i < heads_; ++i)
        if (!r.read(p[i]) || p[i] < 0 || p[i] > seen) return Status::corrupt_data;
    for (index_t i = 0; i < heads_; ++i) {
      if (h.known[i] > h.slots[i]) return Status::corrupt_data;
      const retrieve::UnitRange c = candidates(h, i);
      h.first[i] = c.first, h.last[i] = c.last;
    }
    Buffer<std::int32_t> units(heap_memory());
    Buffer<index_t> count(heap_memory());
    if (const Status s = count.resize(2 * rows_); s != Status::ok) return s;
    std::fill(count.begin(), count.end(), index_t{0});
    for (index_t row = 0; row < rows_; ++row) {
      const index_t head = row * heads_ / rows_;
      std::uint32_t n = 0;
      if (!r.read(n) || n > r.left() / sizeof(std::int32_t)) return Status::corrupt_data;
      h.offset[row] = units.size(), count[at_ * rows_ + row] = static_cast<index_t>(n);
      for (std::uint32_t i = 0; i < n; ++i) {
        std::int32_t u = 0;
        if (!r.read(u) || u < h.first[head] || u >= h.last[head]) return Status::corrupt_data;
        if (i > 0 && u - h.first[head] <= units.back()) return Status::corrupt_data;  // they ascend
        if (const Status s = units.push_back(u - static_cast<std::int32_t>(h.first[head])); s != Status::ok) return s;
      }
    }
    h.offset[rows_] = units.size();
    Status s = units_[at_].upload(ctx, units.span());
    if (s == Status::ok) s = count_.upload(ctx, count.span());
    const Status done = ctx.wait();
    if (s == Status::ok) s = done;
    if (s == Status::ok) made_ = made;
    return s;
  }
  /// Units are of slots that are there.
  template <class Slots>
  bool fits(Slots&& slots) const {
    for (index_t h = 0; valid() && h < heads_; ++h)
      if (now().slots[h] > slots(h)) return false;
    return true;
  }
  void clear() {
    drop();
    for (auto& u : units_) static_cast<void>(u.resize(0));
  }

 private:
  cuda::DeviceArray<std::int32_t> units_[2];
  cuda::DeviceArray<index_t> count_;  ///< of both halves
  Half half_[2];
  index_t rows_ = 0, heads_ = 0;
  int at_ = 0;
  index_t made_ = -1;  ///< logical length when they were chosen; -1: none are held
};

}  // namespace kvcondense::cache
