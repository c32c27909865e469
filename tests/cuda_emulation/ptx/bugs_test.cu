// Kernels with one planted bug each, as nvcc compiles them; each is caught, with this message.
// The first is right, and passes.

#include <cub/block/block_reduce.cuh>

#include "emulation.hpp"
#include "program_check.hpp"

using namespace ptx::test;
namespace emulation = ptx::emulation;

namespace {

enum Bug {
  none, no_copy_wait, too_few_groups, no_warp_sync_after_wait, no_warp_sync_before_refill,
  no_sync_before_merge, cub_storage_reused, divergent_shuffle, shared_overrun, global_overrun,
  misaligned_vector, divergent_barrier, no_commit_before_exit, null_pointer, no_tail_mask, mask_without_me,
  source_outside_mask
};

__device__ void copy16(void* to, void const* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Each warp sums its tiles of 128 floats through a ring of two buffers; the block merges. `in` holds whole tiles, of
// which `used` numbers count; `out` has room for n.
template <Bug B>
__global__ void sum_tiles(float const* in, float* out, int tiles, int used, int n) {
  constexpr int warps = 2;
  using Reduce = cub::BlockReduce<float, warps * 32>;
  __shared__ __align__(16) float ring[warps][2][128];
  __shared__ float merged[warps];
  __shared__ typename Reduce::TempStorage temp;
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto const fetch = [&](int tile) {
    if (tile < tiles) copy16(&ring[warp][tile / warps % 2][4 * lane], in + tile * 128 + 4 * lane);
    if (B != no_commit_before_exit) commit();
  };
  fetch(warp);
  float sum = 0;
  for (int tile = warp; tile < tiles; tile += warps) {
    fetch(tile + warps);
    if (B == too_few_groups) wait<2>();
    else if (B != no_copy_wait) wait<1>();
    if (B != no_warp_sync_after_wait) __syncwarp();
    for (int i = 0; i < 4; ++i) {
      int const at = (lane + 32 * i) ^ 1;
      if (B == no_tail_mask || tile * 128 + at < used) sum += ring[warp][tile / warps % 2][at];
    }
    if (B != no_warp_sync_before_refill) __syncwarp();
  }
  wait<0>();
  if (B == mask_without_me) sum += __shfl_xor_sync(0x0000ffffu, 0.0f, 1);
  if (B == source_outside_mask && lane < 16) sum += __shfl_sync(0x0000ffffu, 0.0f, 20);
  if (B == divergent_shuffle) {
    if (lane < 16) sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  } else {
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  }
  if (lane == 0) merged[B == shared_overrun ? 600 * (warp + 1) : warp] = sum;
  if (B == divergent_barrier) {
    if (lane < 7) __syncthreads();
    else __syncthreads(), sum += 1;
  } else if (B != no_sync_before_merge) {
    __syncthreads();
  }
  float const all = merged[0] + merged[1];
  float const max = Reduce(temp).Reduce(all + threadIdx.x, [](float a, float b) { return a > b ? a : b; });
  if (B != cub_storage_reused) __syncthreads();
  float const least = Reduce(temp).Reduce(all - threadIdx.x, [](float a, float b) { return a < b ? a : b; });
  if (threadIdx.x == 0) out[B == global_overrun ? n : 0] = all, out[1] = max, out[2] = least;
  if (B == misaligned_vector) *reinterpret_cast<float4*>(out + 2) = make_float4(1, 2, 3, 4);
  if (B == null_pointer && threadIdx.x == 33) *reinterpret_cast<float volatile*>(n - 8) = 1;
}

template <Bug B>
std::string run() {
  int const tiles = 9, used = tiles * 128 - 37;
  std::vector<float> in(tiles * 128);
  double want = 0;
  for (std::size_t i = 0; i < in.size(); ++i) {
    in[i] = static_cast<float>(i % 13);
    if (i < static_cast<std::size_t>(used)) want += in[i];
  }
  Buffer<float> from(in), to(8);
  sum_tiles<B><<<1, 64>>>(from.data(), to.data(), tiles, used, 8);
  cudaError_t const error = cudaDeviceSynchronize();
  std::string const fault = emulation::fault();
  expect((error == cudaSuccess) == fault.empty(), "an error where there is a fault");
  if (!fault.empty()) return fault;
  auto const got = to.get();
  return got[0] == static_cast<float>(want) && got[1] == got[0] + 63 && got[2] == got[0] - 63 ? "no fault" : "wrong sums";
}

}  // namespace

int main() {
  emulation::on_fault(emulation::OnFault::report);
  expect_text(run<none>(), "no fault", "the kernel without a bug");
  std::string const copying = "shared memory touched while cp.async still copies to it", race = "race in shared memory";
  expect_text(run<no_copy_wait>(), copying, "no wait for a copy");
  expect_text(run<too_few_groups>(), copying, "a wait for too few groups");
  expect_text(run<no_warp_sync_after_wait>(), race, "no __syncwarp after the wait");
  expect_text(run<no_warp_sync_before_refill>(), race, "no __syncwarp before the refill");
  expect_text(run<no_sync_before_merge>(), race, "no __syncthreads before the merge");
  expect_text(run<cub_storage_reused>(), race, "CUB storage used again without a barrier");
  expect_text(run<divergent_shuffle>(), "warp operation", "a full shuffle by half a warp");
  expect_text(run<mask_without_me>(), "whose mask names only lanes 0-15", "a shuffle by lanes that its mask does not name");
  expect_text(run<source_outside_mask>(), "reads lane 20, which does not take part", "a shuffle from a lane that its mask does not name");
  expect_text(run<no_tail_mask>(), "wrong sums", "numbers behind the end");
  expect_text(run<shared_overrun>(), "shared memory write out of bounds", "a write beyond shared memory");
  expect_text(run<global_overrun>(), "0 bytes past an allocation of 32", "a write beyond an allocation");
  expect_text(run<misaligned_vector>(), "misaligned global write of 16 bytes", "a vector off its alignment");
  expect_text(run<divergent_barrier>(), "block barrier", "a barrier in both branches");
  expect_text(run<no_commit_before_exit>(), copying, "copies that are never committed");
  expect_text(run<null_pointer>(), "a null pointer", "a null pointer");
  std::string const where = run<shared_overrun>();
  expect_text(where, "bugs_test.cu:", "the source line");
  expect_text(where, "block 0,0,0, warp", "the place");
  return report();
}
