// What a context keeps of the runtime's errors, where only this device can be brought to give them: work that fails late, a stream that is
// gone, no device.

#include <kvcondense/cuda.cuh>

#include "emulation.hpp"
#include "program_check.hpp"

using namespace kvcondense;
using ptx::test::expect, ptx::test::expect_text, ptx::test::must, ptx::test::report;
namespace emulation = ptx::emulation;

namespace {

template <int Value>
__global__ void __launch_bounds__(32) fill(int* to) {
  to[threadIdx.x] = Value;
}

bool said(cudaError_t wanted) { return Context<Cuda>::error().code == wanted && cudaGetLastError() == cudaSuccess; }

Context<Cuda> make(cudaStream_t stream) {
  const Expected<Context<Cuda>> ctx = Context<Cuda>::make(stream);
  expect(ctx.has_value(), "a context");
  return *ctx;
}

void a_kernel_that_fails(cudaStream_t stream) {
  const Context<Cuda> ctx = make(stream);
  cuda::DeviceArray<int> x;
  expect(x.resize(32) == Status::ok, "memory");
  emulation::on_fault(emulation::OnFault::report);
  expect(cuda::launch(ctx, fill<1>, {1}, 32, 0, static_cast<int*>(nullptr)) == Status::ok, "the launch of a kernel that will fail");
  expect(said(cudaSuccess), "nothing has failed when it is launched");
  expect(ctx.wait() == Status::device_error, "it has when somebody waits");
  expect(ctx.error().code == cudaErrorLaunchFailure, "which the context keeps");
  expect_text(ctx.error().name(), "cudaErrorLaunchFailure", "its name");
  expect(x.fill_bytes(ctx, 0) == Status::device_error || ctx.wait() == Status::device_error, "the device stays broken");
  emulation::fault();
  emulation::on_fault(emulation::OnFault::stop);
  expect(ctx.wait() == Status::ok && said(cudaErrorLaunchFailure), "what is well again does not clear it");
  ctx.clear_error();
  expect(said(cudaSuccess), "the caller does");
}

void a_stream_that_is_gone() {
  cudaStream_t gone;
  must(cudaStreamCreateWithFlags(&gone, cudaStreamNonBlocking));
  const Context<Cuda> ctx = make(gone);
  cuda::DeviceArray<int> x;
  expect(x.upload(ctx, std::vector<int>(32, 7)) == Status::ok, "a copy");
  must(cudaStreamDestroy(gone));
  std::vector<int> got(32);
  const auto each = [&](const char* what, auto&& call) {
    ctx.clear_error();
    expect(call() == Status::device_error && said(cudaErrorInvalidResourceHandle), what);
  };
  each("a copy to the device", [&] { return x.upload(ctx, got); });
  each("a copy from the device", [&] { return x.download(ctx, std::span<int>(got)); });
  each("bytes", [&] { return x.fill_bytes(ctx, 0); });
  each("a launch", [&] { return cuda::launch(ctx, fill<2>, {1}, 32, 0, x.data()); });
  each("a wait", [&] { return ctx.wait(); });
  ctx.clear_error();
}

void no_device() {
  emulation::device_there(false);
  expect(Context<Cuda>::make(nullptr).status() == Status::no_device, "no device, no context");
  expect(Context<Cuda>::error().code == cudaErrorNoDevice, "which says why");
  Context<Cuda>::clear_error();
  expect(cuda::device_memory().allocate(64, 64) == nullptr && Context<Cuda>::error().code == cudaErrorNoDevice, "nor memory");
  emulation::device_there(true);
  Context<Cuda>::clear_error();
  must(cudaGetLastError());
}

}  // namespace

int main() {
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  a_kernel_that_fails(stream);
  a_stream_that_is_gone();
  no_device();
  must(cudaStreamDestroy(stream));
  return report();
}
