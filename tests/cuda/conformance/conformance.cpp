// conformance [SEED [early]]    a line per wrapper of backend/cuda/dialect.cuh: wrapper[/case], and
// a hash of what it does conformance --show LINE       for each thread of that line: what it is
// given, what comes of it, and what of that is hashed
//
// Built as host C++ with fibers, by nvcc for the interpreter of its PTX, and for a device: all must
// print conformance.txt, with which conformance.py compares. SEED, early: in which order fibers
// run, and that asynchronous copies land at once.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels.cuh"
#include "lines.hpp"

namespace {

using namespace conformance;

void must(cudaError_t e) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "CUDA error %d\n", static_cast<int>(e));
  std::exit(2);
}

/// What `n` threads write that are given these words.
Words run(Kernel kernel, const Words& given, std::size_t n, std::size_t out_words,
          std::size_t shared) {
  void *in = nullptr, *out = nullptr;
  Words got(out_words);
  cudaStream_t stream = nullptr;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  must(cudaMalloc(&in, given.size() * sizeof(u32)));
  must(cudaMalloc(&out, got.size() * sizeof(u32)));
  must(cudaMemcpyAsync(in, given.data(), given.size() * sizeof(u32), cudaMemcpyHostToDevice,
                       stream));
  must(cuda::detail::start_kernel(kernel, dim3(static_cast<unsigned>((n + threads - 1) / threads)),
                                  dim3(threads), shared, stream, static_cast<const u32*>(in),
                                  static_cast<u32*>(out), static_cast<int>(n)));
  must(cudaMemcpyAsync(got.data(), out, got.size() * sizeof(u32), cudaMemcpyDeviceToHost, stream));
  must(cudaStreamSynchronize(stream));
  must(cudaFree(in));
  must(cudaFree(out));
  must(cudaStreamDestroy(stream));
  return got;
}

std::uint64_t fnv1a(const Words& words) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const u32 w : words)
    for (int byte = 0; byte < 4; ++byte) hash = (hash ^ (w >> (8 * byte) & 255u)) * 0x100000001b3u;
  return hash;
}

/// What a thread has of words.
void print(const char* what, const Words& words, std::size_t threads_of_line, std::size_t thread) {
  const std::size_t each = words.size() / threads_of_line;
  std::printf(" %s", what);
  for (std::size_t i = 0; i < each; ++i) std::printf(" %08x", words[thread * each + i]);
}

struct Report {
  const char* show;
  int lines = 0;

  /// A thread has `in` and `out` words, a block `shared` bytes.
  void line(const char* name, Kernel kernel, const Words& given, int in, int out,
            Words (*hashed)(const Words& given, const Words& got), std::size_t shared = 0) {
    if (show != nullptr && std::strcmp(show, name) != 0) return;
    ++lines;
    const std::size_t n = given.size() / static_cast<std::size_t>(in);
    const Words got = run(kernel, given, n, n * static_cast<std::size_t>(out), shared),
                bits = hashed(given, got);
    for (std::size_t t = 0; show != nullptr && t < n; ++t) {
      std::printf("%zu:", t);
      print("given", given, n, t), print("got", got, n, t), print("hashed", bits, n, t);
      std::printf("\n");
    }
    std::printf("%s %016llx\n", name, static_cast<unsigned long long>(fnv1a(bits)));
  }
  template <class Wrapper>
  void line(const char* name, const Words& given,
            Words (*hashed)(const Words& given, const Words& got)) {
    line(name, each_thread<Wrapper>, given, Wrapper::in, Wrapper::out, hashed);
  }
};

}  // namespace

int main(int argc, char** argv) {
  Report report{argc > 2 && std::strcmp(argv[1], "--show") == 0 ? argv[2] : nullptr};
#if defined(KVCONDENSE_CUDA_FIBERS)
  if (report.show == nullptr && argc > 1)
    cuda_fibers::options.seed = std::strtoull(argv[1], nullptr, 10);
  if (report.show == nullptr && argc > 2) cuda_fibers::options.late_copies = false;
#endif
  report.line("dyn_smem", shared_parts<threads>, for_words(15, 250 * part), part, part + 1, raw,
              threads * part * sizeof(u32));
  report.line("forget_shared", forgotten_words<threads>, for_words(19, 250), 1, 1, raw,
              threads * sizeof(u32));
  report.line<Prmt>("prmt", for_prmt(), raw);
  report.line<AndOr>("and_or", for_and_or(), raw);
  report.line<Half2Pack>("half2_pack", for_pack(), halves_but_nan);
  report.line<Half2Fma>("half2_fma", for_fma(), halves_but_nan);
  report.line<Half2Mul>("half2_mul", for_mul(), halves_but_nan);
  report.line<Exp2Fast>("exp2_fast/exact", for_exact_powers(), floats_but_nan);
  report.line<Exp2Fast>("exp2_fast/near", for_powers(), powers_within);
  report.line("copy_async/4", copied_grains<4>, for_copies(true), 8, 1, raw, threads * 4);
  report.line("copy_async/8", copied_grains<8>, for_copies(true), 8, 2, raw, threads * 8);
  report.line("copy_async/16", copied_grains<16>, for_copies(true), 8, 4, raw, threads * 16);
  report.line("copy_async/all", copied_grains<16>, for_copies(false), 8, 4, raw, threads * 16);
  report.line("copy_async_commit", committed_groups<threads>, for_words(16, 250), 1, 1, raw,
              threads * sizeof(u32));
  report.line("copy_async_wait", awaited_groups<threads>, for_words(17, 3 * 250), 3, 3, raw,
              threads * 3 * sizeof(u32));
  report.line<MmaF16>("mma_f16/integers", for_integers(8, 1, 1, 64), sums);
  report.line<MmaF16>("mma_f16/subnormal", for_integers(9, 0x1p-24f, 0x1p-24f, 16), sums);
  report.line<MmaF16>("mma_f16/infinite", for_infinities(), sums);
  report.line<MmaF16>("mma_f16/near", for_sums(), sums_within);
  report.line<Transpose8x8>("transpose_8x8", for_words(18, 32 * 40), raw);
  if (report.lines == 0) std::fprintf(stderr, "no line %s\n", report.show);
  return report.lines == 0 ? 2 : 0;
}
