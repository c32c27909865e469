#pragma once

#include <cstddef>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/dialect.cuh>

namespace kvcondense::cuda {

/// What a kernel may have without asking.
inline constexpr std::size_t plain_shared = 48 * 1024;

/// Blocks along x, y, z. Sizes are index_t, since most come from shapes.
struct Grid {
  index_t x = 1, y = 1, z = 1;
};

/// kernel<<<grid, threads, shared, stream of ctx>>>(arguments...), the only way kernels are started. An empty grid
/// is done at once.
template <class... P, class... A>
Status launch(const Context<Cuda>& ctx, void (*kernel)(P...), Grid grid, int threads, std::size_t shared,
              A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return Status::ok;
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return Status::invalid_argument;
  if (shared > plain_shared) {
    if (shared > ctx.facts().shared_per_block) return Status::not_supported;
    // All that the device has, not what this call wants: threads of the host that start one kernel with different sizes would lower it for each other.
    const cudaError_t e = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(ctx.facts().shared_per_block));
    if (e != cudaSuccess) return settled(e);
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  return settled(detail::start_kernel(kernel, blocks, dim3(static_cast<unsigned>(threads)), shared, ctx.stream(), static_cast<A&&>(arguments)...));
}

/// Blocks of `each` that cover n.
constexpr index_t covering(index_t n, index_t each) { return (n + each - 1) / each; }

}  // namespace kvcondense::cuda
