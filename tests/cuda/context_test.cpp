// Contexts, memory and errors of the CUDA backend.

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/steering.cuh>

#include "device.hpp"

using namespace kvcondense;
using test::at;

namespace {

template <int Factor>
__global__ void scale(const float* x, index_t n, float* out) {
  const index_t i = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) out[i] = Factor * x[i];
}

template <int Words>
__global__ void fill_shared(int* out) {
  int* shared = reinterpret_cast<int*>(cuda::dyn_smem());
  for (int i = static_cast<int>(threadIdx.x); i < Words; i += static_cast<int>(blockDim.x)) shared[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = shared[Words - 1];
}

}  // namespace

TEST_CASE("cuda: values go to the device, through a kernel and back") {
  test::each_way([] {
    test::Device device;
    std::vector<float> x(1000);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
    test::OnDevice<float> in(device, x), out(device, std::vector<float>(1000, -1.0f));
    REQUIRE(cuda::launch(device, scale<3>, {cuda::covering(1000, 128)}, 128, 0, in.data(), 1000, out.data()) == Status::ok);
    const std::vector<float> got = out.read();
    for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(got[i] == 3.0f * x[i]);
  });
}

TEST_CASE("cuda: an empty grid is done, an impossible one is refused") {
  test::Device device;
  test::OnDevice<float> x(device, {1.0f});
  const float* in = x.data();
  CHECK(cuda::launch(device, scale<3>, {0}, 128, 0, in, 1, x.data()) == Status::ok);
  CHECK(cuda::launch(device, scale<3>, {1, 65536}, 128, 0, in, 1, x.data()) == Status::invalid_argument);
  CHECK(cuda::launch(device, scale<3>, {index_t{1} << 31}, 128, 0, in, 1, x.data()) == Status::invalid_argument);
  CHECK(cuda::launch(device, scale<3>, {1}, 1025, 0, in, 1, x.data()) == Status::invalid_argument);
  CHECK(cuda::launch(device, scale<3>, {1}, 32, std::size_t{1} << 20, in, 1, x.data()) == Status::not_supported);
  CHECK(x.read()[0] == 1.0f);
}

TEST_CASE("cuda: a block may have more shared memory than the plain limit") {
  test::Device device;
  test::OnDevice<int> out(device, {0});
  constexpr int words = 20000;
  REQUIRE(cuda::launch(device, fill_shared<words>, {1}, 256, words * sizeof(int), out.data()) == Status::ok);
  CHECK(out.read()[0] == words - 1);
}

TEST_CASE("cuda: copies from page-locked memory have what was written for them, though nobody waits") {
  test::Device device;
  test::OnDevice<int> out(device, std::vector<int>(40, -1));
  cuda::Staging staging;
  std::span<std::byte> bytes;
  for (int i = 0; i < 10; ++i) {
    REQUIRE(staging.reserve(i < 5 ? 4 * sizeof(int) : 80 * sizeof(int)) == Status::ok);  // grows amid copies
    REQUIRE(staging.next(bytes) == Status::ok);
    REQUIRE(bytes.size() >= 4 * sizeof(int));
    const int numbers[4] = {i, i + 1, i + 2, i + 3};
    std::memcpy(bytes.data(), numbers, sizeof numbers);
    REQUIRE(staging.send(device, out.data() + 4 * i, sizeof numbers) == Status::ok);
  }
  const std::vector<int> got = out.read();
  for (int i = 0; i < 40; ++i) CHECK(got[static_cast<std::size_t>(i)] == i / 4 + i % 4);
}

TEST_CASE("cuda: facts of the device") {
  const Expected<cuda::DeviceFacts> facts = cuda::device_facts();
  REQUIRE(facts);
  CHECK(facts->multiprocessors > 0);
  CHECK(facts->capability >= 80);
  CHECK(facts->shared_per_block >= cuda::plain_shared);
  CHECK(facts->shared_per_multiprocessor >= facts->shared_per_block);
}

TEST_CASE("cuda: arrays keep what they have when memory is refused") {
  test::RefusingMemory memory(1);
  {
    test::Device device;
    cuda::DeviceArray<int> a(memory);
    REQUIRE(a.upload(device, std::vector<int>{1, 2, 3}) == Status::ok);
    CHECK(a.resize(5) == Status::out_of_memory);
    std::vector<int> got(3);
    REQUIRE(a.download(device, std::span<int>(got)) == Status::ok);
    device.wait();
    CHECK(got == std::vector<int>{1, 2, 3});
    std::vector<int> more(4);
    CHECK(a.download(device, std::span<int>(more)) == Status::out_of_range);
    cuda::DeviceArray<int> b = std::move(a);
    CHECK(b.size() == 3);
    CHECK(memory.out == 1);
  }
  CHECK(memory.out == 0);
}

TEST_CASE("cuda: errors of the runtime have a Status") {
  CHECK(cuda::status_of(cudaSuccess) == Status::ok);
  CHECK(cuda::status_of(cudaErrorMemoryAllocation) == Status::out_of_memory);
  CHECK(cuda::status_of(cudaErrorInvalidConfiguration) == Status::invalid_argument);
  CHECK(cuda::status_of(cudaErrorNoDevice) == Status::no_device);
  CHECK(cuda::status_of(cudaErrorInsufficientDriver) == Status::no_device);
  CHECK(cuda::status_of(cudaErrorLaunchOutOfResources) == Status::not_supported);
  CHECK(cuda::status_of(cudaErrorIllegalAddress) == Status::device_error);
}

TEST_CASE("cuda: a context keeps the first error of the runtime until it is cleared") {
  test::Device device;
  const Context<Cuda>& ctx = device.context();
  test::OnDevice<float> x(device, {1.0f});
  const float* in = x.data();
  cuda::DeviceFacts much = ctx.facts();
  much.shared_per_block = std::size_t{1} << 20;  // more than any device has: the runtime is asked, and refuses
  const Context<Cuda> boastful(ctx.stream(), much);
  const auto launch = [&](const Context<Cuda>& on, int threads, std::size_t shared) { return cuda::launch(on, scale<3>, {1}, threads, shared, in, 1, x.data()); };

  Context<Cuda>::clear_error();
  CHECK(!ctx.error());
  CHECK(std::string(ctx.error().name()) == "cudaSuccess");
  CHECK(launch(ctx, 32, std::size_t{1} << 20) == Status::not_supported);  // the library's own refusal
  test::RefusingMemory none(0);
  cuda::DeviceArray<int> refused(none);
  CHECK(refused.resize(3) == Status::out_of_memory);
  CHECK(!ctx.error());

  cuda::DeviceArray<std::byte> large;
  CHECK(large.resize(index_t{1} << 50) == Status::out_of_memory);
  CHECK(ctx.error().code == cudaErrorMemoryAllocation);
  CHECK(launch(boastful, 32, much.shared_per_block) == Status::invalid_argument);
  CHECK(launch(ctx, 1025, 0) == Status::invalid_argument);
  CHECK(ctx.error().code == cudaErrorMemoryAllocation);  // the first, of all contexts of the thread
  CHECK(std::string(ctx.error().name()) == "cudaErrorMemoryAllocation");
  CHECK(std::string(ctx.error().text()) != "");
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(launch(ctx, 32, 0) == Status::ok);
  device.wait();
  CHECK(ctx.error().code == cudaErrorMemoryAllocation);  // calls that succeed do not clear it

  cudaError_t elsewhere = cudaErrorMemoryAllocation;
  std::thread([&] { elsewhere = Context<Cuda>::error().code; }).join();
  CHECK(elsewhere == cudaSuccess);

  Context<Cuda>::clear_error();
  CHECK(launch(boastful, 32, much.shared_per_block) == Status::invalid_argument);
  CHECK(ctx.error().code == cudaErrorInvalidValue);
  Context<Cuda>::clear_error();
  CHECK(launch(ctx, 1025, 0) == Status::invalid_argument);
  CHECK(ctx.error().code == cudaErrorInvalidConfiguration);
  Context<Cuda>::clear_error();
  CHECK(!ctx.error());
}

TEST_CASE("cuda: an error that the caller left is neither told as the library's nor taken away") {
  test::Device device;
  test::OnDevice<float> x(device, {2.0f});
  const float* in = x.data();
  const auto leave = [] { return cudaFuncSetAttribute(reinterpret_cast<const void*>(&scale<3>), cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 30); };
  Context<Cuda>::clear_error();
  REQUIRE(leave() == cudaErrorInvalidValue);
  CHECK(cuda::launch(device, scale<3>, {1}, 32, 0, in, 1, x.data()) == Status::ok);
  CHECK(!Context<Cuda>::error());
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  CHECK(x.read()[0] == 6.0f);

  REQUIRE(leave() == cudaErrorInvalidValue);
  CHECK(cuda::launch(device, scale<3>, {1}, 1025, 0, in, 1, x.data()) == Status::invalid_argument);
  CHECK(Context<Cuda>::error().code == cudaErrorInvalidConfiguration);  // its own
  CHECK(cudaGetLastError() == cudaSuccess);  // the runtime keeps one error, the last
  Context<Cuda>::clear_error();
}

#if defined(KVCONDENSE_CUDA_FIBERS)
namespace {
struct Restore {
  cuda_fibers::Runtime runtime = cuda_fibers::runtime;
  ~Restore() { cuda_fibers::runtime = runtime; }
};
}  // namespace

TEST_CASE("cuda: where no device is, every maker says so") {
  const Restore restore;
  cuda_fibers::runtime.devices = 0;
  Context<Cuda>::clear_error();
  CHECK(Context<Cuda>::make(nullptr).status() == Status::no_device);
  CHECK(Context<Cuda>::error().code == cudaErrorNoDevice);  // though there is no context
  CHECK(cuda::device_facts().status() == Status::no_device);
  CHECK(cudaGetLastError() == cudaSuccess);  // nobody else meets the error
  CHECK(cuda::device_memory().allocate(16, 16) == nullptr);
}

TEST_CASE("cuda: what a kernel may have is never lowered for another thread that starts it") {
  test::Device device;
  test::OnDevice<int> out(device, {0});
  constexpr int words = 20000;
  for (const std::size_t bytes : {words * sizeof(int) + 4096, words * sizeof(int)}) {
    REQUIRE(cuda::launch(device, fill_shared<words>, {1}, 256, bytes, out.data()) == Status::ok);
    CHECK(cuda_fibers::runtime.may_have.at(reinterpret_cast<const void*>(&fill_shared<words>)) == device.context().facts().shared_per_block);
  }
}

TEST_CASE("cuda: a device below compute capability 8.0 is none") {
  const Restore restore;
  cuda_fibers::runtime.major = 7, cuda_fibers::runtime.minor = 5;
  CHECK(Context<Cuda>::make(nullptr).status() == Status::no_device);
}

TEST_CASE("cuda: a broken device is told by every call") {
  test::Device device;
  test::OnDevice<float> x(device, {1.0f});
  const float* in = x.data();
  const Restore restore;
  cuda_fibers::runtime.broken = cudaErrorIllegalAddress;
  Context<Cuda>::clear_error();
  CHECK(device.context().wait() == Status::device_error);
  CHECK(std::string(device.context().error().name()) == "cudaErrorIllegalAddress");
  CHECK(cuda::launch(device, scale<3>, {1}, 32, 0, in, 1, x.data()) == Status::device_error);
  cuda::DeviceArray<int> a;
  CHECK(a.resize(3) == Status::out_of_memory);
}

TEST_CASE("cuda: memory that the device does not have is refused") {
  const Restore restore;
  cuda_fibers::runtime.allocations_until_refusal = 0;
  cuda::DeviceArray<int> a;
  CHECK(a.resize(3) == Status::out_of_memory);
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("cuda: an error of any call of the runtime comes back as its Status, and nothing is lost") {
  // What a caller does: a context, arrays, a kernel with much shared memory, the numbers back.
  constexpr int words = 20000;
  std::vector<int> got(1, -1);
  const auto all = [&]() -> Status {
    const auto made = Context<Cuda>::make(nullptr);
    if (!made) return made.status();
    cuda::DeviceArray<int> in, out;
    if (const Status s = in.upload(*made, std::vector<int>{4, 5}); s != Status::ok) return s;
    if (const Status s = out.resize(1); s != Status::ok) return s;
    if (const Status s = out.fill_bytes(*made, 0); s != Status::ok) return s;
    if (const Status s = cuda::launch(*made, fill_shared<words>, {1}, 256, words * sizeof(int), out.data()); s != Status::ok) return s;
    if (const Status s = out.download(*made, std::span<int>(got)); s != Status::ok) return s;
    return made->wait();
  };
  const Restore restore;
  const std::size_t held = cuda_fibers::runtime.allocated;
  for (const cudaError_t e : {cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorNotSupported, cudaErrorNoDevice, cudaErrorIllegalAddress}) {
    std::vector<Status> said;
    for (int n = 0;; ++n) {
      CAPTURE(e, n);
      REQUIRE(n < 100);
      cuda_fibers::runtime.calls = 0, cuda_fibers::runtime.fail_at = n, cuda_fibers::runtime.fail_with = e;
      Context<Cuda>::clear_error();
      const Status s = all();
      const bool reached = cuda_fibers::runtime.calls > n;
      cuda_fibers::runtime.fail_at = -1;
      CHECK(cudaGetLastError() == cudaSuccess);  // nobody else meets it
      CHECK(cuda_fibers::runtime.allocated == held);
      CHECK(Context<Cuda>::error().code == (reached ? e : cudaSuccess));  // whatever the Status could say
      if (!reached) break;
      said.push_back(s);
      REQUIRE(all() == Status::ok);  // once the device is well again
      REQUIRE(got[0] == words - 1);
    }
    // All but two: a resource says only that it has no memory, and what is wrong when memory is given back comes too late.
    const auto count = [&](Status s) { return std::count(said.begin(), said.end(), s); };
    const bool memory = e == cudaErrorMemoryAllocation;
    CHECK(said.size() == 18);
    CHECK(count(Status::ok) == 2);
    CHECK(count(cuda::status_of(e)) == (memory ? 16 : 14));
    CHECK(count(Status::out_of_memory) == (memory ? 16 : 2));
  }
}
#endif
