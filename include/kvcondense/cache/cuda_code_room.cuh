#pragma once

#include <cstddef>
#include <span>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/page_layout.cuh>
#include <kvcondense/cache/cuda_column_plan.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::cache {

/// Pages of codes on their way between a column and a file, which has them as the CPU stores them. Where their layouts differ a page is laid out anew on the
/// device: one that is there for that, and that calls on one stream take in turn.
class CodeRoom {
 public:
  explicit CodeRoom(MemoryResource<Cuda>& memory) : page_(memory) {}

  /// Bytes that pages of a column want here; none where both layouts are the same.
  template <class Codec>
  static std::size_t bytes_for(const CudaColumnPlan<Codec>& plan) {
    return same(plan, plan.slots_of(1), prim::CodecParts<Codec>::transform(plan.codec).stored_dim(plan.dim)) ? 0 : plan.coded_bytes;
  }
  Status make(std::size_t bytes) { return page_.resize(static_cast<index_t>(bytes)); }

  /// Enqueues: a page of the column, wherever on the device it stands, goes to the host. `dim`: of a stored row.
  template <class Codec>
  Status down(const Context<Cuda>& ctx, const CudaColumnPlan<Codec>& plan, const std::byte* from, index_t dim, std::span<std::byte> to) {
    using Parts = prim::CodecParts<Codec>;
    if constexpr (lays<Codec>)
      if (const index_t slots = plan.slots_of(1); !same(plan, slots, dim)) {
        const Status s = prim::PageLayout::copy(ctx, Parts::stored(plan.codec), from, Parts::stored(plan.filed), page_.data(), slots, dim);
        return s == Status::ok ? page_.download(ctx, to) : s;
      }
    return cuda::settled(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, ctx.stream()));
  }
  /// Enqueues: the bytes of a file become a page of the column.
  template <class Codec>
  Status up(const Context<Cuda>& ctx, const CudaColumnPlan<Codec>& plan, std::span<const std::byte> from, std::byte* to, index_t dim) {
    using Parts = prim::CodecParts<Codec>;
    const auto send = [&](std::byte* at) { return cuda::settled(cudaMemcpyAsync(at, from.data(), from.size(), cudaMemcpyHostToDevice, ctx.stream())); };
    if constexpr (lays<Codec>)
      if (const index_t slots = plan.slots_of(1); !same(plan, slots, dim)) {
        const Status s = send(page_.data());
        return s == Status::ok ? prim::PageLayout::copy(ctx, Parts::stored(plan.filed), page_.data(), Parts::stored(plan.codec), to, slots, dim) : s;
      }
    return send(to);
  }

 private:
  template <class Codec>
  static constexpr bool lays = requires(const typename prim::CodecParts<Codec>::Stored& c) { prim::PageLayout::same(c, c, 1, 1); };
  template <class Codec>
  static bool same(const CudaColumnPlan<Codec>& plan, index_t slots, index_t dim) {
    using Parts = prim::CodecParts<Codec>;
    if constexpr (lays<Codec>) return prim::PageLayout::same(Parts::stored(plan.codec), Parts::stored(plan.filed), slots, dim);
    else return true;
  }

  cuda::DeviceArray<std::byte> page_;
};

}  // namespace kvcondense::cache
