#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>

#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/slot_summary.cuh>
#include <kvcondense/cache/counters.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/shape.hpp>

namespace kvcondense::cache {

/// The summary slots of a layer's heads: means of what left them, as Summary has that of a head on the CPU. How many slots they are the mean of is the
/// device's.
class CudaSummary {
 public:
  explicit CudaSummary(MemoryResource<Cuda>& memory) : means_(memory), counts_(memory) {}

  /// Of no slot yet. The default stream is to be waited for.
  Status make(const CacheShape& shape) {
    heads_ = shape.kv_heads, width_ = shape.head_dim + shape.values();
    Status s = means_.resize(heads_ * width_);
    if (s == Status::ok) s = counts_.resize(2 * heads_);
    if (s == Status::ok) s = cuda::settled(cudaMemsetAsync(means_.data(), 0, means_.bytes().size(), nullptr));
    return s == Status::ok ? cuda::settled(cudaMemsetAsync(counts_.data(), 0, counts_.bytes().size(), nullptr)) : s;
  }
  bool kept() const { return heads_ > 0; }
  std::size_t bytes() const { return static_cast<std::size_t>(means_.size()) * sizeof(float) + static_cast<std::size_t>(counts_.size()) * sizeof(index_t); }

  prim::PagedSummaries view() const { return {means_.data(), counts_.data(), width_}; }
  prim::SummaryNumbers numbers() { return {means_.data(), counts_.data(), heads_, width_}; }

  Status fork(const Context<Cuda>& ctx, CudaSummary& out) const {
    const Status s = out.means_.copy_from(ctx, means_);
    return s == Status::ok ? out.counts_.copy_from(ctx, counts_) : s;
  }
  Status clear(const Context<Cuda>& ctx) { return counts_.fill_bytes(ctx, 0); }

  /// A head in a file: how many, then the numbers; where none is kept nothing. Waits for the stream.
  Status save(ByteWriter& w, const Context<Cuda>& ctx, index_t head) const {
    if (!kept()) return Status::ok;
    std::int64_t count = 0;
    static_assert(sizeof count == sizeof(index_t));
    Buffer<float> row(heap_memory());
    Status s = row.resize(width_);
    if (s == Status::ok) s = copy(ctx, &count, counts_.data() + head, sizeof count, cudaMemcpyDeviceToHost);
    if (s == Status::ok) s = copy(ctx, row.data(), means_.data() + head * width_, row.span().size_bytes(), cudaMemcpyDeviceToHost);
    if (const Status done = ctx.wait(); s == Status::ok) s = done;
    if (s != Status::ok) return s;
    w.put(count);
    w.bytes(std::as_bytes(row.span()));
    return s;
  }
  /// `most`: slots that can have left the head. Waits for the stream.
  Status load(ByteReader& r, const Context<Cuda>& ctx, index_t head, index_t most) {
    if (!kept()) return Status::ok;
    std::int64_t count = 0;
    std::span<const std::byte> numbers;
    Buffer<float> row(heap_memory());
    if (!r.read(count) || count < 0 || count > most || !r.take(static_cast<std::uint64_t>(width_), sizeof(float), numbers)) return Status::corrupt_data;
    if (const Status s = row.resize(width_); s != Status::ok) return s;
    std::memcpy(row.data(), numbers.data(), numbers.size());
    for (const float x : row)
      if (count > 0 && !std::isfinite(x)) return Status::corrupt_data;
    Status s = copy(ctx, means_.data() + head * width_, row.data(), numbers.size(), cudaMemcpyHostToDevice);
    for (const index_t column : {head, heads_ + head})
      if (s == Status::ok) s = copy(ctx, counts_.data() + column, &count, sizeof count, cudaMemcpyHostToDevice);
    const Status done = ctx.wait();
    return s == Status::ok ? done : s;
  }

 private:
  static Status copy(const Context<Cuda>& ctx, void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    return cuda::settled(cudaMemcpyAsync(to, from, bytes, kind, ctx.stream()));
  }

  cuda::DeviceArray<float> means_;
  cuda::DeviceArray<index_t> counts_;
  index_t heads_ = 0, width_ = 0;
};

}  // namespace kvcondense::cache
