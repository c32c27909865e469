#pragma once

#include <cstddef>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/group_quant.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// A warp a slot, four slots a block. `source` is only read.
template <class Codec>
__global__ void __launch_bounds__(codec_threads, 8) lay_codes(Codec from, std::byte* source, Codec to, std::byte* target, int slots, int dim) {
  const int slot = static_cast<int>(blockIdx.x) * codec_warps + cuda::warp_of_block(), lane = cuda::lane_of_warp();
  if (slot >= slots) return;  // whole warps leave, and no block barrier follows
  std::uint8_t* const codes = cuda::shared_as<RowsShared<Codec>>().of_warp[cuda::warp_of_block()].codes;
  const RowPage<Codec> old(from, source, slots, dim), page(to, target, slots, dim);
  for (int c = lane; c < dim; c += cuda::warp_lanes) codes[c] = static_cast<std::uint8_t>(old.code(slot, c));
  __syncwarp();
  page.write_codes(slot, codes, lane, cuda::warp_lanes);
  if (slot % page.group_slots() == 0) page.copy_params(old, slot, lane, cuda::warp_lanes);
}

}  // namespace cuda_kernels

/// Pages of codes in another layout: the same codes and parameters, as many bytes.
struct PageLayout {
  template <int Bits>
  static constexpr bool same(const GroupInt<Bits>& a, const GroupInt<Bits>& b, index_t slots, index_t dim) {
    return a.layout_of(slots, dim) == b.layout_of(slots, dim);
  }

  /// Enqueues: the page of `slots` slots at `source`, laid out as `from` says, stands at `target` as `to` says. The two differ in nothing else, and
  /// the pages do not overlap.
  template <int Bits>
  static Status copy(const Context<Cuda>& ctx, const GroupInt<Bits>& from, const std::byte* source, const GroupInt<Bits>& to, std::byte* target, index_t slots,
                     index_t dim) {
    using namespace cuda_kernels;
    using Codec = GroupInt<Bits>;
    if (from.with(to.layout).fingerprint() != to.fingerprint()) return Status::invalid_argument;
    if (const Status s = check(to, {nullptr, 1, slots, slots, dim}); s != Status::ok) return s;
    if constexpr (Codec::has_lanes)
      if (!same(from, to, slots, dim))
        return cuda::launch(ctx, lay_codes<Codec>, {cuda::covering(slots, codec_warps)}, codec_threads, sizeof(RowsShared<Codec>), from, const_cast<std::byte*>(source), to,
                            target, static_cast<int>(slots), static_cast<int>(dim));
    return cuda::settled(cudaMemcpyAsync(target, source, to.page_bytes(slots, dim), cudaMemcpyDeviceToDevice, ctx.stream()));
  }
};

}  // namespace kvcondense::prim
