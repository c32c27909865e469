// Emulation A itself: what threads, warps, copies and launches do, against their definitions.

#include <catch2/catch.hpp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <vector>

#include <kvcondense/backend/cuda/dialect.cuh>

namespace {

using namespace kvcondense;
using cuda_fibers::start;

/// Options and the pretended device are as they were after a test.
struct Restore {
  cuda_fibers::Options options = cuda_fibers::options;
  cuda_fibers::Runtime runtime = cuda_fibers::runtime;
  ~Restore() {
    cuda_fibers::options = options;
    cuda_fibers::runtime = runtime;
  }
};

template <class Use>
void each_way(Use&& use) {
  const Restore restore;
  for (const std::uint64_t seed : {0u, 1u, 17u})
    for (const bool late : {true, false}) {
      cuda_fibers::options.seed = seed;
      cuda_fibers::options.late_copies = late;
      use();
    }
}

void write_place(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1 + static_cast<int>(thread);
}

void shuffles(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32), mine = 100 + lane;
  int* o = out + threadIdx.x * 8;
  o[0] = __shfl_sync(0xffffffffu, mine, 3);
  o[1] = __shfl_xor_sync(0xffffffffu, mine, 5);
  o[2] = __shfl_down_sync(0xffffffffu, mine, 2);
  o[3] = __shfl_up_sync(0xffffffffu, mine, 2);
  o[4] = __shfl_sync(0xffffffffu, mine, 1, 8);
  o[5] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
  o[6] = __reduce_add_sync(0xffffffffu, mine);
  o[7] = lane < 8 ? __shfl_xor_sync(0x000000ffu, mine, 1) : -1;
}

void matrix_product(const float* a, const float* b, float* d) {
  const unsigned row = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
  std::uint32_t left[4], right[2];
  const auto at = [&](unsigned r, unsigned c) { return cuda::half2_pack(a[r * 16 + c], a[r * 16 + c + 1]); };
  left[0] = at(row, pair), left[1] = at(row + 8, pair), left[2] = at(row, pair + 8), left[3] = at(row + 8, pair + 8);
  for (unsigned h = 0; h < 2; ++h)
    right[h] = cuda::half2_pack(b[(pair + 8 * h) * 8 + row], b[(pair + 1 + 8 * h) * 8 + row]);
  float sum[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  cuda::mma_f16(sum, left, right);
  for (unsigned i = 0; i < 4; ++i) d[(row + 8 * (i / 2)) * 8 + pair + i % 2] = sum[i];
}

void transpose(const std::uint16_t* in, std::uint16_t* out) {
  const unsigned at = threadIdx.x * 2;
  const std::uint32_t v = cuda::transpose_8x8(in[at] | static_cast<std::uint32_t>(in[at + 1]) << 16);
  out[at] = static_cast<std::uint16_t>(v), out[at + 1] = static_cast<std::uint16_t>(v >> 16);
}

void staged_copy(const float* in, float* before, float* after) {
  auto* stage = reinterpret_cast<float*>(cuda::dyn_smem()) + threadIdx.x * 8;
  cuda::copy_async(stage, in + threadIdx.x * 4);
  cuda::copy_async_commit();
  cuda::copy_async(stage + 4, in, false);
  cuda::copy_async_commit();
  before[threadIdx.x] = stage[0];
  cuda::copy_async_wait<1>();
  after[threadIdx.x] = stage[3];
  cuda::copy_async_wait<0>();
  after[32 + threadIdx.x] = stage[7];
}

void neighbours(int* out) {
  auto* shared = reinterpret_cast<int*>(cuda::dyn_smem());
  for (int round = 0; round < 3; ++round) {
    shared[threadIdx.x] = static_cast<int>(threadIdx.x) * (round + 1);
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] += shared[(threadIdx.x + 33) % blockDim.x];
    __syncthreads();
  }
}

void forget(int* out) {
  auto* shared = reinterpret_cast<int*>(cuda::dyn_smem());
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = round;
    __syncthreads();
    cuda::forget_shared();
    out[threadIdx.x] += shared[(threadIdx.x + 33) % blockDim.x] == round ? 1 : 100;  // still there
    __syncthreads();
    out[threadIdx.x] += shared[threadIdx.x] == -1 ? 1 : 100;  // poison
    shared[threadIdx.x] = 5;
    __syncthreads();
    out[threadIdx.x] += shared[(threadIdx.x + 33) % blockDim.x] == 5 ? 1 : 100;  // the next barrier forgets nothing
    __syncthreads();
  }
}

void log_blocks(int* order, int* next) { order[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x); }

}  // namespace

TEST_CASE("fibers: every thread of every block runs once") {
  each_way([] {
    std::vector<int> out(2 * 3 * 2 * 5 * 7 * 2);
    start(write_place, dim3(2, 3, 2), dim3(5, 7, 2), 0, out.data());
    for (std::size_t i = 0; i < out.size(); ++i) REQUIRE(out[i] == 1 + static_cast<int>(i % 70));
  });
}

TEST_CASE("fibers: shuffles, votes and sums") {
  each_way([] {
    std::vector<int> out(64 * 8);
    start(shuffles, dim3(1), dim3(64), 0, out.data());
    for (int t = 0; t < 64; ++t) {
      const int lane = t % 32;
      const int* o = out.data() + t * 8;
      CHECK(o[0] == 103);
      CHECK(o[1] == 100 + (lane ^ 5));
      CHECK(o[2] == 100 + (lane + 2 < 32 ? lane + 2 : lane));
      CHECK(o[3] == 100 + (lane >= 2 ? lane - 2 : lane));
      CHECK(o[4] == 100 + lane / 8 * 8 + 1);
      CHECK(static_cast<unsigned>(o[5]) == 0x49249249u);
      CHECK(o[6] == 3200 + 31 * 16);
      CHECK(o[7] == (lane < 8 ? 100 + (lane ^ 1) : -1));
    }
  });
}

TEST_CASE("fibers: a matrix product and a transpose have PTX's fragments") {
  std::vector<float> a(16 * 16), b(16 * 8), d(16 * 8);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 5 % 23) - 11.0f;
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 3 % 19) - 9.0f;
  start(matrix_product, dim3(1), dim3(32), 0, a.data(), b.data(), d.data());
  for (std::size_t r = 0; r < 16; ++r)
    for (std::size_t c = 0; c < 8; ++c) {
      float sum = static_cast<float>(1 + r / 8 * 2 + c % 2);
      for (std::size_t k = 0; k < 16; ++k) sum += a[r * 16 + k] * b[k * 8 + c];
      CHECK(d[r * 8 + c] == sum);
    }
  std::vector<std::uint16_t> in(64), out(64);
  for (std::size_t i = 0; i < 64; ++i) in[i] = static_cast<std::uint16_t>(1000 + i);
  start(transpose, dim3(1), dim3(32), 0, in.data(), out.data());
  for (std::size_t r = 0; r < 8; ++r)
    for (std::size_t c = 0; c < 8; ++c) CHECK(out[r * 8 + c] == in[c * 8 + r]);
}

TEST_CASE("fibers: copies land at their wait, or at once") {
  each_way([] {
    std::vector<float> in(128), before(32), after(64);
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
    start(staged_copy, dim3(1), dim3(32), 32 * 32, in.data(), before.data(), after.data());
    for (std::size_t t = 0; t < 32; ++t) {
      if (cuda_fibers::options.late_copies) CHECK(before[t] != before[t]);  // shared memory begins as NaN
      else CHECK(before[t] == in[4 * t]);
      CHECK(after[t] == in[4 * t + 3]);
      CHECK(after[32 + t] == 0.0f);
    }
  });
}

TEST_CASE("fibers: barriers separate rounds") {
  each_way([] {
    std::vector<int> out(3 * 96);
    start(neighbours, dim3(3), dim3(96), 96 * sizeof(int), out.data());
    for (std::size_t i = 0; i < out.size(); ++i) REQUIRE(out[i] == 6 * static_cast<int>((i + 33) % 96));
  });
}

TEST_CASE("fibers: shared memory that is forgotten is poison behind the next barrier, and no other") {
  each_way([] {
    std::vector<int> out(96);
    start(forget, dim3(1), dim3(96), 96 * sizeof(int), out.data());
    for (const int x : out) REQUIRE(x == 6);
  });
}

TEST_CASE("fibers: seeds change the order of blocks, and the same seed repeats it") {
  const Restore restore;
  const auto order = [](std::uint64_t seed) {
    cuda_fibers::options.seed = seed;
    std::vector<int> blocks(20);
    int next = 0;
    start(log_blocks, dim3(20), dim3(1), 0, blocks.data(), &next);
    return blocks;
  };
  const auto plain = order(0), first = order(5);
  for (int i = 0; i < 20; ++i) CHECK(plain[static_cast<std::size_t>(i)] == i);
  CHECK(first != plain);
  CHECK(first == order(5));
  CHECK(first != order(6));
  CHECK(std::set<int>(first.begin(), first.end()).size() == 20);
}

TEST_CASE("fibers: a program's kernels run in the way that its environment says", "[ways]") {
  const auto is = [](const cuda_fibers::Options& o, std::uint64_t seed, bool late) { return o.seed == seed && o.late_copies == late; };
  CHECK(is(cuda_fibers::options_of(nullptr), 0, true));
  CHECK(is(cuda_fibers::options_of("5"), 5, true));
  CHECK(is(cuda_fibers::options_of("17,eager"), 17, false));
  const char* said = std::getenv("KVCONDENSE_FIBERS");  // this program's own; CTest runs it without one and with a seed and eager copies
  const bool eager = said != nullptr && std::strstr(said, "eager") != nullptr;
  int next = 0;
  std::vector<int> blocks(20), in_order(20);
  for (int i = 0; i < 20; ++i) in_order[static_cast<std::size_t>(i)] = i;
  start(log_blocks, dim3(20), dim3(1), 0, blocks.data(), &next);
  CHECK((blocks == in_order) == (said == nullptr || std::atoi(said) == 0));
  std::vector<float> in(128, 3.0f), before(32), after(64);
  start(staged_copy, dim3(1), dim3(32), 32 * 32, in.data(), before.data(), after.data());
  CHECK(after[31] == 3.0f);
  CHECK((before[31] == 3.0f) == eager);
}

TEST_CASE("fibers: the runtime refuses what a device would refuse") {
  const Restore restore;
  int next = 0, block = 0;
  start(log_blocks, dim3(1), dim3(1025), 0, &block, &next);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  CHECK(cudaGetLastError() == cudaSuccess);
  start(log_blocks, dim3(1), dim3(32), 228 * 1024, &block, &next);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  CHECK(next == 0);
  void* p = nullptr;
  cuda_fibers::runtime.allocations_until_refusal = 0;
  CHECK(cudaMalloc(&p, 16) == cudaErrorMemoryAllocation);
  CHECK(p == nullptr);
  cuda_fibers::runtime.devices = 0;
  int devices = -1;
  CHECK(cudaGetDeviceCount(&devices) == cudaErrorNoDevice);
  CHECK(devices == 0);
}

TEST_CASE("fibers: a graph keeps what was enqueued, with the arguments of then") {
  const Restore restore;
  cudaStream_t stream = nullptr, other = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  REQUIRE(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking) == cudaSuccess);
  int next = 0, wrong = 0, blocks[4] = {-1, -1, -1, -1}, copy[4] = {}, elsewhere = 0;
  int* counter = &next;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorIllegalState);
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(cudaStreamBeginCapture(other, cudaStreamCaptureModeGlobal) == cudaErrorIllegalState);
  CHECK(cudaGetLastError() == cudaErrorIllegalState);
  REQUIRE(cuda::detail::start_kernel(log_blocks, dim3(4), dim3(1), 0, stream, &blocks[0], counter) == cudaSuccess);
  counter = &wrong;
  REQUIRE(cudaMemcpyAsync(copy, blocks, sizeof copy, cudaMemcpyDeviceToDevice, stream) == cudaSuccess);
  REQUIRE(cudaMemsetAsync(&next, 0, sizeof next, stream) == cudaSuccess);
  CHECK(cuda::detail::start_kernel(log_blocks, dim3(4), dim3(1025), 0, stream, &blocks[0], counter) == cudaErrorInvalidConfiguration);  // at once
  REQUIRE(cudaMemsetAsync(&elsewhere, 1, sizeof elsewhere, other) == cudaSuccess);
  CHECK(elsewhere == 0x01010101);  // another stream goes on
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  REQUIRE(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
  REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(blocks[0] == -1);
  for (const std::uint64_t seed : {0u, 5u}) {
    cuda_fibers::options.seed = seed;
    blocks[0] = copy[0] = -1;
    REQUIRE(cudaGraphLaunch(exec, stream) == cudaSuccess);
    CHECK(std::set<int>(copy, copy + 4) == std::set<int>{0, 1, 2, 3});
    CHECK(next == 0);
  }
  CHECK(wrong == 0);
  REQUIRE(cudaGraphExecDestroy(exec) == cudaSuccess);
  for (int call = 0; call < 5; ++call) {
    CAPTURE(call);
    void* p = nullptr;
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    const int before = cuda_fibers::runtime.waits;
    CHECK((call == 0 ? cudaMalloc(&p, 16) : call == 1 ? cudaMallocHost(&p, 16) : call == 2 ? cudaStreamSynchronize(stream) : call == 3 ? cudaStreamSynchronize(other) : cudaEventSynchronize(nullptr)) ==
          cudaErrorStreamCaptureUnsupported);
    CHECK(p == nullptr);
    CHECK(cuda_fibers::runtime.waits - before == (call < 2 ? 0 : 1));
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
  }
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  CHECK(cudaStreamDestroy(other) == cudaSuccess);
  cudaGetLastError();
}

TEST_CASE("fibers: byte permutations repeat signs as PTX does") {
  CHECK(cuda::prmt(0x33221100u, 0x77665544u, 0x7520u) == 0x77552200u);
  CHECK(cuda::prmt(0x80ff7f01u, 0, 0xba98u) == 0xffff0000u);
  CHECK(cuda::half2_fma(0x3c00u, 0x4000u, 0x3c00u) == 0x4200u);
}
