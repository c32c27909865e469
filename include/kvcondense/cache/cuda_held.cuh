#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/cache/cuda_index.cuh>
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
    index_t* base = nullptr;  ///< lists count from this one: the first of them, of lists from a file 0
    index_t *slots = nullptr, *known = nullptr, *prompt = nullptr;  ///< when they were chosen: all, those that competed, those of prompts
  };

  /// `ranked`: units have places in the order of their scores, in which a file has them too.
  explicit CudaHeld(MemoryResource<Cuda>& memory, bool ranked)
      : units_{cuda::DeviceArray<std::int32_t>(memory), cuda::DeviceArray<std::int32_t>(memory)}, count_(memory), ranked_(ranked) {}

  static std::size_t steering_bytes(index_t rows, index_t heads) {
    return 2 * (Scratch::bytes_for<index_t>(rows + 1) + 6 * Scratch::bytes_for<index_t>(heads)) + Scratch::align;
  }
  Status make(index_t rows, index_t heads, std::span<std::byte> steering) {
    rows_ = rows, heads_ = heads;
    Scratch scratch(steering);
    for (Half& h : half_) {
      h.offset = scratch.take<index_t>(rows + 1);
      for (index_t** p : {&h.first, &h.last, &h.base, &h.slots, &h.known, &h.prompt}) *p = scratch.take<index_t>(heads);
    }
    choosing_ = scratch.rest();
    return count_.resize(2 * rows);
  }

  /// What the host writes for kernels that choose.
  std::span<std::byte> choosing() const { return choosing_; }
  bool valid() const { return made_ >= 0; }
  /// Units of any row, where they come from a file, whose recipe may have chosen more than this one does; 0: a step chose them.
  index_t loaded() const { return valid() ? loaded_ : 0; }
  void drop() { made_ = -1; }
  /// Of calls of `attend`.
  const Half& now() const { return half_[at_]; }
  RaggedView<const std::int32_t> units() const { return {units_[at_].data(), now().offset, rows_}; }
  const std::int32_t* ranks() const { return ranked_ ? units_[at_].data() + units_[at_].size() / 2 : nullptr; }
  const index_t* count() const { return count_.data() + at_ * rows_; }
  std::size_t bytes() const {
    return static_cast<std::size_t>(units_[0].size() + units_[1].size()) * sizeof(std::int32_t) + static_cast<std::size_t>(count_.size()) * sizeof(index_t);
  }

  /// Room for so many units in the half that is written next; the stream is waited for where it grows.
  Status reserve(const Context<Cuda>& ctx, index_t units) {
    auto& room = units_[1 - at_];
    if (ranked_) units *= 2;  // ranks lie behind
    if (room.size() >= units) return Status::ok;
    if (const Status s = ctx.wait(); s != Status::ok) return s;
    return room.resize(std::max(units, 2 * room.size()));
  }
  /// The half to write, after `reserve`; from `turn` on it is the one that is read.
  const Half& next() const { return half_[1 - at_]; }
  CudaLists next_lists() {
    auto& room = units_[1 - at_];
    return {{{room.data(), next().offset, rows_}, count_.data() + (1 - at_) * rows_}, ranked_ ? room.data() + room.size() / 2 : nullptr};
  }
  void turn(index_t made) { at_ = 1 - at_, made_ = made, loaded_ = 0; }

  void truncate(index_t tokens) {
    if (tokens < made_) drop();
  }
  /// Behind what the stream has to do.
  Status fork(const Context<Cuda>& ctx, CudaHeld& out) const {
    out.at_ = at_, out.made_ = made_, out.loaded_ = loaded_;
    if (!valid()) return Status::ok;
    const Half &from = now(), &to = out.now();
    std::copy_n(from.offset, rows_ + 1, to.offset);
    for (const auto& [a, b] : {std::pair(from.first, to.first), std::pair(from.last, to.last), std::pair(from.base, to.base), std::pair(from.slots, to.slots), std::pair(from.known, to.known)})
      std::copy_n(a, heads_, b);
    const Status s = out.units_[at_].copy_from(ctx, units_[at_]);
    return s == Status::ok ? out.count_.copy_from(ctx, count_) : s;
  }

  /// As `save_held` writes those of the host; waits for the stream.
  void save(ByteWriter& w, const Context<Cuda>& ctx) const {
    w.put(made_);
    if (!valid()) return;
    const Half& h = now();
    Buffer<std::int32_t> units(heap_memory()), ordered(heap_memory());
    Buffer<index_t> count(heap_memory());
    Status s = units.resize(ranked_ ? units_[at_].size() : h.offset[rows_]);
    if (s == Status::ok) s = count.resize(2 * rows_);
    if (s == Status::ok) s = ordered.resize(units.size());
    if (s == Status::ok) s = units_[at_].download(ctx, {units.data(), static_cast<std::size_t>(units.size())});
    if (s == Status::ok) s = count_.download(ctx, {count.data(), static_cast<std::size_t>(count.size())});
    const Status done = ctx.wait();
    if (s != Status::ok || done != Status::ok) return w.fail(s != Status::ok ? s : done);
    for (const index_t* p : {h.slots, h.known})
      for (index_t i = 0; i < heads_; ++i) w.put(p[i]);
    for (index_t r = 0; r < rows_; ++r) {
      const index_t n = count[at_ * rows_ + r];
      const std::int32_t* const list = units.data() + h.offset[r];
      for (index_t i = 0; i < n; ++i) ordered[ranked_ ? list[units.size() / 2 + i] : i] = list[i] + static_cast<std::int32_t>(h.base[r * heads_ / rows_]);
      w.put(static_cast<std::uint32_t>(n));
      for (index_t i = 0; i < n; ++i) w.put(ordered[i]);
    }
  }
  /// Into an empty one, which `settle` makes whole; `seen`: tokens of the layer. The stream is waited for.
  Status load(ByteReader& r, const Context<Cuda>& ctx, index_t seen) {
    index_t made = -1;
    if (!r.read(made) || made < -1 || made > seen) return Status::corrupt_data;
    if (made < 0) return Status::ok;
    const Half& h = now();
    for (index_t* p : {h.slots, h.known})
      for (index_t i = 0; i < heads_; ++i)
        if (!r.read(p[i]) || p[i] < 0 || p[i] > seen) return Status::corrupt_data;
    for (index_t i = 0; i < heads_; ++i) {
      if (h.known[i] > h.slots[i]) return Status::corrupt_data;
      h.base[i] = 0, h.first[i] = seen + 1, h.last[i] = 0;
    }
    Buffer<std::int32_t> units(heap_memory()), ranks(heap_memory());
    Buffer<index_t> count(heap_memory());
    if (const Status s = count.resize(2 * rows_); s != Status::ok) return s;
    std::fill(count.begin(), count.end(), index_t{0});
    loaded_ = 0;
    for (index_t row = 0; row < rows_; ++row) {
      const index_t head = row * heads_ / rows_;
      std::uint32_t n = 0;
      if (!r.read(n) || n > r.left() / sizeof(std::int32_t)) return Status::corrupt_data;
      const index_t begin = units.size();
      h.offset[row] = begin, count[at_ * rows_ + row] = static_cast<index_t>(n);
      loaded_ = std::max(loaded_, static_cast<index_t>(n));
      for (std::uint32_t i = 0; i < n; ++i) {
        std::int32_t u = 0;
        if (!r.read(u) || u < 0 || u > seen) return Status::corrupt_data;
        h.first[head] = std::min<index_t>(h.first[head], u), h.last[head] = std::max<index_t>(h.last[head], u + 1);
        if (const Status s = units.push_back(u); s != Status::ok) return s;
      }
      if (const Status s = ranks.resize(units.size()); s != Status::ok) return s;
      if (ranked_) put_in_order({units.data() + begin, static_cast<std::size_t>(n)}, {ranks.data() + begin, static_cast<std::size_t>(n)});
      for (index_t i = begin + 1; i < units.size(); ++i)
        if (units[i] <= units[i - 1]) return Status::corrupt_data;  // they ascend, or did
    }
    h.offset[rows_] = units.size();
    for (index_t i = 0; ranked_ && i < h.offset[rows_]; ++i)
      if (const Status s = units.push_back(ranks[i]); s != Status::ok) return s;
    Status s = units_[at_].upload(ctx, units.span());
    if (s == Status::ok) s = count_.upload(ctx, count.span());
    const Status done = ctx.wait();
    if (s == Status::ok) s = done;
    if (s == Status::ok) made_ = made;
    return s;
  }
  /// After `load`, with what else says which units competed, `candidates(half, head)`: whether the lists are of them, and of slots that are there.
  template <class Slots, class Candidates>
  bool settle(Slots&& slots, Candidates&& candidates) {
    for (index_t i = 0; valid() && i < heads_; ++i) {
      const Half& h = now();
      if (h.slots[i] > slots(i)) return false;
      const retrieve::UnitRange c = candidates(h, i);
      if (h.first[i] < h.last[i] && (h.first[i] < c.first || h.last[i] > c.last)) return false;
      h.first[i] = c.first, h.last[i] = c.last;
    }
    return true;
  }
  void clear() {
    drop();
    for (auto& u : units_) static_cast<void>(u.resize(0));
  }

 private:
  /// Units in the order of scores ascend, and their places in that order are told.
  static void put_in_order(std::span<std::int32_t> units, std::span<std::int32_t> ranks) {
    std::iota(ranks.begin(), ranks.end(), 0);
    std::sort(ranks.begin(), ranks.end(), [&](auto a, auto b) { return units[static_cast<std::size_t>(a)] < units[static_cast<std::size_t>(b)]; });
    std::sort(units.begin(), units.end());
  }

  cuda::DeviceArray<std::int32_t> units_[2];  ///< lists, and behind the room for them ranks
  cuda::DeviceArray<index_t> count_;  ///< of both halves
  Half half_[2];
  std::span<std::byte> choosing_;
  index_t rows_ = 0, heads_ = 0;
  int at_ = 0;
  bool ranked_ = false;
  index_t made_ = -1;  ///< logical length when they were chosen; -1: none are held
  index_t loaded_ = 0;
};

}  // namespace kvcondense::cache
