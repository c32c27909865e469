#pragma once

// Starts a grid: blocks one after another, in order or in a random one.

#include <cstddef>
#include <memory>
#include <new>
#include <tuple>
#include <type_traits>
#include <utility>

#include "machine.hpp"
#include "runtime.hpp"

namespace cuda_fibers {

/// Dynamic shared memory of exactly these bytes: ASan sees an overrun.
class SharedBlock {
 public:
  explicit SharedBlock(std::size_t bytes) {
    machine.shared = static_cast<unsigned char*>(::operator new(bytes, std::align_val_t{128}));
    machine.shared_bytes = bytes;
  }
  ~SharedBlock() {
    ::operator delete(machine.shared, std::align_val_t{128});
    machine.shared = nullptr;
    machine.shared_bytes = 0;
  }
  SharedBlock(const SharedBlock&) = delete;
  SharedBlock& operator=(const SharedBlock&) = delete;
};

/// Dynamic shared memory of a kernel that was allowed no more.
inline constexpr std::size_t plain_shared = 48 * 1024;

/// Whether a device takes the grid; a block may have `most` shared memory.
inline bool takes(dim3 grid, dim3 block, std::size_t shared, std::size_t most) {
  const std::size_t threads = std::size_t{block.x} * block.y * block.z, blocks = std::size_t{grid.x} * grid.y * grid.z;
  return threads > 0 && threads <= most_threads && block.z <= 64 && blocks > 0 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535 &&
         shared <= most;
}

/// Runs `call` in every thread of a grid that the device takes.
template <class Call>
void run_grid(dim3 grid, dim3 block, std::size_t shared, Call& call) {
  const std::size_t threads = std::size_t{block.x} * block.y * block.z, blocks = std::size_t{grid.x} * grid.y * grid.z;
  land_copies();
  make_threads(static_cast<unsigned>(threads));
  const SharedBlock memory(shared);
  machine.entry = [](void* c) { (*static_cast<Call*>(c))(); };
  machine.argument = &call;
  blockDim = block, gridDim = grid;
  machine.random = (options.seed * 0x9e3779b97f4a7c15ull) | 1u;
  const std::unique_ptr<std::size_t[]> order(new std::size_t[blocks]);
  for (std::size_t i = 0; i < blocks; ++i) order[i] = i;
  for (std::size_t i = blocks; options.seed != 0 && i > 1; --i) std::swap(order[i - 1], order[next_random() % i]);
  for (std::size_t i = 0; i < blocks; ++i) {
    const std::size_t b = order[i];
    run_block({static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
               static_cast<unsigned>(b / grid.x / grid.y)},
              block);
  }
  order_acquire(&machine.grid_order);
  ++counts.launches;
}

/// kernel<<<grid, block, shared, stream>>>(arguments...): arguments are copied once, as a launch does. A grid that no device takes is an error, which
/// the runtime keeps too.
template <class... P, class... A>
cudaError_t start_on(cudaStream_t stream, void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, A&&... arguments) {
  const auto allowed = runtime.may_have.find(reinterpret_cast<const void*>(kernel));
  const bool taken = takes(grid, block, shared, allowed == runtime.may_have.end() ? plain_shared : allowed->second);
  if (const cudaError_t e = answer(taken ? cudaSuccess : cudaErrorInvalidConfiguration); e != cudaSuccess) return e;
  submit(stream, [kernel, grid, block, shared, copied = std::tuple<std::decay_t<P>...>(static_cast<P>(arguments)...)] {
    auto call = [&] { std::apply(kernel, copied); };
    run_grid(grid, block, shared, call);
  });
  return cudaSuccess;
}
template <class... P, class... A>
void start(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, A&&... arguments) {
  static_cast<void>(start_on(nullptr, kernel, grid, block, shared, static_cast<A&&>(arguments)...));
}

}  // namespace cuda_fibers

namespace kvcondense::cuda::detail {

template <class... P, class... A>
cudaError_t start_kernel(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream, A&&... arguments) {
  if (const cudaError_t e = cuda_fibers::answer(); e != cudaSuccess) return e;
  return cuda_fibers::start_on(stream, kernel, grid, block, shared, static_cast<A&&>(arguments)...);
}

}  // namespace kvcondense::cuda::detail
