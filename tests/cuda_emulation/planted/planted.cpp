// planted BUG [SEED [early]]    runs the kernel with one bug and compares its result; exit 1 when it is wrong.
//
// Emulations end the program themselves where they find the bug. "early": asynchronous copies land at once.
// CUDA is used directly: what is tested here is the emulation, not the library.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "kernel.cuh"

namespace {

using Kernel = void (*)(const float*, int, int, float*);

template <int... I>
Kernel pick(int bug, std::integer_sequence<int, I...>) {
  static constexpr Kernel all[] = {&planted::sum<static_cast<planted::Bug>(I)>...};
  return all[bug];
}

void check(cudaError_t e) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "CUDA error %d\n", static_cast<int>(e));
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  int bug = -1;
  for (int i = 0; argc > 1 && i < planted::bugs; ++i)
    if (std::strcmp(argv[1], planted::names[i]) == 0) bug = i;
  if (bug < 0) {
    for (const char* name : planted::names) std::printf("%s\n", name);
    return 2;
  }
#if defined(KVCONDENSE_CUDA_FIBERS)
  if (argc > 2) cuda_fibers::options.seed = std::strtoull(argv[2], nullptr, 10);
  if (argc > 3) cuda_fibers::options.late_copies = false;
#endif

  constexpr int tiles = 19, n = tiles * planted::tile - 37;
  std::vector<float> x(tiles * planted::tile + 4);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7 % 31) - 14.0f;
  float part[planted::warps] = {}, expected[2] = {};
  for (int i = 0; i < n; ++i) part[i / planted::tile % planted::warps] += x[static_cast<std::size_t>(i)];
  for (const float p : part) expected[0] += p, expected[1] = p > expected[1] ? p : expected[1];

  void *in = nullptr, *out = nullptr;
  float got[2] = {};
  check(cudaMalloc(&in, x.size() * sizeof(float)));
  check(cudaMalloc(&out, sizeof got));
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  check(cudaMemcpyAsync(in, x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice, stream));
  check(kvcondense::cuda::detail::start_kernel(pick(bug, std::make_integer_sequence<int, planted::bugs>{}), dim3(1),
                                               dim3(planted::warps * 32), planted::ring_bytes + planted::merge_bytes,
                                               stream, static_cast<const float*>(in), n, tiles, static_cast<float*>(out)));
  check(cudaMemcpyAsync(got, out, sizeof got, cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  check(cudaFree(in));
  check(cudaFree(out));
  check(cudaStreamDestroy(stream));
  if (got[0] == expected[0] && got[1] == expected[1]) return std::printf("right\n"), 0;
  std::printf("wrong result: %g %g instead of %g %g\n", static_cast<double>(got[0]), static_cast<double>(got[1]),
              static_cast<double>(expected[0]), static_cast<double>(expected[1]));
  return 1;
}
