#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/open_slots.cuh>
#include <kvcondense/cache/counters.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/shape.hpp>

namespace kvcondense::cache {

/// The newest slots of a layer's heads, which later tokens may still join, as OpenSlot has that of a head on the CPU. How many of their tokens a step has
/// seen, and which joined, is the device's; taking back pending tokens leaves nothing to do.
class CudaOpenSlots {
 public:
  explicit CudaOpenSlots(MemoryResource<Cuda>& memory) : rows_(memory), settled_(memory), passed_(memory), memory_(&memory) {}

  /// Of no token yet; `window`: of the gate. The default stream is to be waited for.
  Status make(const CacheShape& shape, index_t window) {
    heads_ = shape.kv_heads, key_dim_ = shape.head_dim, value_dim_ = shape.values(), window_ = window;
    const Status s = settled_.resize(heads_);
    return s == Status::ok ? cuda::settled(cudaMemsetAsync(settled_.data(), 0, settled_.bytes().size(), nullptr)) : s;
  }
  bool kept() const { return heads_ > 0; }
  std::size_t bytes() const {
    return static_cast<std::size_t>(rows_.size()) * sizeof(float) + static_cast<std::size_t>(settled_.size()) * sizeof(index_t) + static_cast<std::size_t>(passed_.size());
  }
  /// Of the newest token that a step has seen, of which the slot may be joined; -1: there is none.
  index_t token() const { return token_; }

  /// Room for `tokens` more of `seen` and pending ones; the stream is waited for where memory changes.
  Status reserve(const Context<Cuda>& ctx, index_t seen, index_t pending, index_t tokens) {
    const index_t rows = rows_of(seen, pending) + tokens;
    if (!kept() || rows <= room_) return Status::ok;
    return lay(ctx, std::max<index_t>({rows, 2 * room_, least_room}), seen, pending);
  }
  /// Behind a step, or where tokens are gone: what a long call needed goes back. Waits for the stream where it does; refused memory leaves what there is.
  Status trim(const Context<Cuda>& ctx, index_t seen, index_t pending) {
    const index_t room = rows_of(seen, pending) + least_room;
    if (room_ <= 2 * room) return Status::ok;
    const Status s = lay(ctx, room, seen, pending);
    return s == Status::out_of_memory ? Status::ok : s;
  }

  prim::OpenRows view() { return {rows_.data(), settled_.data(), {passed_.data(), room_}, room_, heads_, key_dim_, value_dim_}; }
  prim::PassedSlots passed(index_t pending) const { return pending > 0 && kept() ? prim::PassedSlots{{passed_.data(), room_}, pending} : prim::PassedSlots{}; }

  /// At the end of a step of `pending` tokens, the newest of them `token`.
  Status settle(Context<Cuda>& ctx, index_t pending, index_t token) {
    if (!kept() || pending == 0) return Status::ok;
    token_ = token;
    return prim::OpenSlots::settle(ctx, view(), pending, window_);
  }
  /// Nothing is left to join.
  Status clear(const Context<Cuda>& ctx) {
    token_ = -1;
    return settled_.fill_bytes(ctx, 0);
  }
  /// Nor is there room; only while no kernel uses it.
  Status release(const Context<Cuda>& ctx) {
    rows_ = cuda::DeviceArray<float>(*memory_), passed_ = cuda::DeviceArray<std::uint8_t>(*memory_), room_ = 0;
    return clear(ctx);
  }
  /// Makes an empty one of the same layer the same.
  Status fork(const Context<Cuda>& ctx, CudaOpenSlots& out, index_t seen, index_t pending) const {
    out.token_ = token_;
    const Status s = out.settled_.copy_from(ctx, settled_);
    if (s != Status::ok || room_ == 0) return s;
    out.room_ = std::min(room_, rows_of(seen, pending) + least_room);
    return copy_to(ctx, out.rows_, out.passed_, out.room_, seen, pending);
  }

  /// A head in a file, as `save_open` writes it; where none is kept nothing. Waits for the stream.
  Status save(ByteWriter& w, const Context<Cuda>& ctx, index_t head, index_t pending) const {
    if (!kept()) return Status::ok;
    index_t settled = 0;
    Status s = cuda::settled(cudaMemcpyAsync(&settled, settled_.data() + head, sizeof settled, cudaMemcpyDeviceToHost, ctx.stream()));
    if (const Status done = ctx.wait(); s == Status::ok) s = done;
    Buffer<float> rows(heap_memory());
    if (s == Status::ok) s = rows.resize((settled + pending) * width());
    if (s == Status::ok && !rows.empty())
      s = cuda::settled(cudaMemcpyAsync(rows.data(), rows_.data() + head * room_ * width(), rows.span().size_bytes(), cudaMemcpyDeviceToHost, ctx.stream()));
    if (const Status done = ctx.wait(); s == Status::ok) s = done;
    if (s != Status::ok) return s;
    w.put(static_cast<std::uint32_t>(settled));
    w.bytes(std::as_bytes(rows.span()));
    return s;
  }
  /// Into an empty one, heads in order; `token`: of the newest slot of the head that a step has seen, -1: there is none. Waits for the stream.
  Status load(ByteReader& r, const Context<Cuda>& ctx, index_t head, const Counters& c, index_t token) {
    if (!kept()) return Status::ok;
    std::uint32_t count = 0;
    std::span<const std::byte> bytes;
    if (!r.read(count) || count > most_settled() || count > c.seen - c.pending) return Status::corrupt_data;
    const auto settled = static_cast<index_t>(count), tokens = settled + c.pending;
    if (!r.take(static_cast<std::uint64_t>(tokens * width()), sizeof(float), bytes)) return Status::corrupt_data;
    token_ = c.seen - c.pending - 1;
    Buffer<float> rows(heap_memory());
    Buffer<std::uint8_t> passed(heap_memory());
    Status s = rows.resize(tokens * width());
    if (s == Status::ok) s = passed.resize(c.pending);
    if (s == Status::ok) s = reserve(ctx, c.seen, c.pending, 0);
    if (s != Status::ok) return s;
    if (!bytes.empty()) std::memcpy(rows.data(), bytes.data(), bytes.size());
    for (const float x : rows)
      if (!std::isfinite(x)) return Status::corrupt_data;
    for (index_t i = 0; i < tokens; ++i) {
      const float weight = rows[(i + 1) * width() - 2], joined = rows[(i + 1) * width() - 1];
      if (weight < 0.0f || (joined != 0.0f && joined != 1.0f) || (i == 0 && settled == 0 && joined != 0.0f)) return Status::corrupt_data;
      if (i >= settled) passed[i - settled] = static_cast<std::uint8_t>(joined != 0.0f && (i > settled || token == token_));
    }
    const auto up = [&](auto* to, const auto* from, std::size_t n) {
      if (s == Status::ok && n > 0) s = cuda::settled(cudaMemcpyAsync(to, from, n, cudaMemcpyHostToDevice, ctx.stream()));
    };
    up(rows_.data() + head * room_ * width(), rows.data(), rows.span().size_bytes());
    up(passed_.data() + head * room_, passed.data(), passed.span().size_bytes());
    up(settled_.data() + head, &settled, sizeof settled);
    const Status done = ctx.wait();
    return s == Status::ok ? done : s;
  }

 private:
  index_t width() const { return key_dim_ + value_dim_ + 2; }
  index_t most_settled() const { return std::max<index_t>(1, window_); }
  /// That a head has at most.
  index_t rows_of(index_t seen, index_t pending) const { return std::min(most_settled(), seen - pending) + pending; }
  Status lay(const Context<Cuda>& ctx, index_t room, index_t seen, index_t pending) {
    cuda::DeviceArray<float> rows(*memory_);
    cuda::DeviceArray<std::uint8_t> passed(*memory_);
    Status s = copy_to(ctx, rows, passed, room, seen, pending);
    if (const Status done = ctx.wait(); s == Status::ok) s = done;  // kernels may still use what goes
    if (s != Status::ok) return s;
    std::swap(rows_, rows), std::swap(passed_, passed);
    room_ = room;
    return s;
  }
  /// Into memory of `room` rows a head.
  Status copy_to(const Context<Cuda>& ctx, cuda::DeviceArray<float>& rows, cuda::DeviceArray<std::uint8_t>& passed, index_t room, index_t seen, index_t pending) const {
    Status s = rows.resize(heads_ * room * width());
    if (s == Status::ok) s = passed.resize(heads_ * room);
    const index_t n = std::min(room_, rows_of(seen, pending));
    if (s == Status::ok) s = copy_rows(ctx, rows.data(), rows_.data(), room * width(), room_ * width(), n * width());
    return s == Status::ok ? copy_rows(ctx, passed.data(), passed_.data(), room, room_, std::min(n, pending)) : s;
  }
  /// The first n numbers of every head, which are so many apart.
  template <class T>
  Status copy_rows(const Context<Cuda>& ctx, T* to, const T* from, index_t to_step, index_t from_step, index_t n) const {
    for (index_t h = 0; h < heads_ && n > 0; ++h) {
      const cudaError_t e = cudaMemcpyAsync(to + h * to_step, from + h * from_step, static_cast<std::size_t>(n) * sizeof(T), cudaMemcpyDeviceToDevice, ctx.stream());
      if (const Status s = cuda::settled(e); s != Status::ok) return s;
    }
    return Status::ok;
  }

  static constexpr index_t least_room = 16;

  cuda::DeviceArray<float> rows_;  ///< of a head those that a step has seen, at most `most_settled`, and the pending ones: `room_`
  cuda::DeviceArray<index_t> settled_;
  cuda::DeviceArray<std::uint8_t> passed_;
  MemoryResource<Cuda>* memory_;
  index_t heads_ = 0, key_dim_ = 0, value_dim_ = 0, window_ = 0;
  index_t room_ = 0;
  index_t token_ = -1;
};

}  // namespace kvcondense::cache
