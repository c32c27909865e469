// The stand-in for the runtime: streams that run late, events, graphs, errors.

#include <cstring>

#include "emulation.hpp"
#include "program_check.hpp"

using namespace ptx::test;
namespace emulation = ptx::emulation;

namespace {

__global__ void fill(int* to, int value, int n) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) to[i] = value;
}
__global__ void add(int* to, int const* from, int n) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) to[i] += from[i];
}
__global__ void __launch_bounds__(64) bounded(int* to) { to[threadIdx.x] = 1; }
__global__ void uses_shared(int* to) {
  extern __shared__ int s[];
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  to[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}

struct Streams {
  cudaStream_t a, b;
  Streams() {
    must(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    must(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
  }
  ~Streams() { cudaStreamDestroy(a), cudaStreamDestroy(b); }
};

void streams_run_late() {
  Streams s;
  int* pinned;
  must(cudaMallocHost(&pinned, 64));
  pinned[0] = -1;
  Buffer<int> x(16);
  fill<<<1, 16, 0, s.a>>>(x.data(), 5, 16);
  must(cudaMemcpyAsync(pinned, x.data(), 64, cudaMemcpyDeviceToHost, s.a));
  expect(pinned[0] == -1, "nothing is there before the stream is waited for");
  expect(cudaStreamQuery(s.a) == cudaErrorNotReady, "the stream is not ready");
  must(cudaStreamSynchronize(s.a));
  expect(pinned[0] == 5 && cudaStreamQuery(s.a) == cudaSuccess, "the stream has run");
  pinned[1] = 7;
  must(cudaMemcpyAsync(x.data(), pinned, 64, cudaMemcpyHostToDevice, s.a));
  pinned[1] = 8;  // a bug of the host: the copy reads pinned memory when it runs
  must(cudaStreamSynchronize(s.a));
  expect(x.get()[1] == 8, "a pinned source is read late");
  std::vector<int> pageable(16, 3);
  must(cudaMemcpyAsync(x.data(), pageable.data(), 64, cudaMemcpyHostToDevice, s.a));
  pageable.assign(16, 4);
  must(cudaStreamSynchronize(s.a));
  expect(x.get()[1] == 3, "a pageable source is read at once");
  emulation::order(emulation::Order::eager);
  fill<<<1, 16, 0, s.a>>>(x.data(), 6, 16);
  must(cudaMemcpyAsync(pinned, x.data(), 64, cudaMemcpyDeviceToHost, s.a));
  expect(pinned[0] == 6, "eager streams run at once");
  emulation::order(emulation::Order::late);
  must(cudaFreeHost(pinned));
}

void events_order_streams() {
  Streams s;
  cudaEvent_t e;
  must(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
  Buffer<int> x(32), y(32);
  fill<<<1, 32, 0, s.a>>>(x.data(), 5, 32);
  add<<<1, 32, 0, s.b>>>(y.data(), x.data(), 32);  // does not wait for x
  must(cudaStreamSynchronize(s.b));
  expect(y.get()[0] == 0, "without an event the other stream sees what was there");
  must(cudaStreamSynchronize(s.a));
  fill<<<1, 32, 0, s.a>>>(x.data(), 9, 32);
  must(cudaEventRecord(e, s.a));
  must(cudaStreamWaitEvent(s.b, e, 0));
  add<<<1, 32, 0, s.b>>>(y.data(), x.data(), 32);
  expect(cudaEventQuery(e) == cudaErrorNotReady, "the event has not come");
  must(cudaStreamSynchronize(s.b));
  expect(y.get()[0] == 9 && cudaEventQuery(e) == cudaSuccess, "with an event it waits");
  must(cudaEventDestroy(e));
  cudaStream_t blocking;
  must(cudaStreamCreate(&blocking));
  fill<<<1, 32, 0, blocking>>>(x.data(), 1, 32);
  add<<<1, 32>>>(y.data(), x.data(), 32);
  must(cudaStreamSynchronize(nullptr));
  expect(y.get()[0] == 10, "the default stream waits for blocking streams");
  must(cudaStreamDestroy(blocking));
  int called = 0;
  must(cudaLaunchHostFunc(s.a, [](void* p) { ++*static_cast<int*>(p); }, &called));
  expect(called == 0, "a host function waits its turn");
  must(cudaDeviceSynchronize());
  expect(called == 1, "a host function is called");
}

void graphs_replay() {
  Streams s;
  Buffer<int> x(32), y(32);
  cudaEvent_t forked, joined;
  must(cudaEventCreate(&forked)), must(cudaEventCreate(&joined));
  must(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeGlobal));
  fill<<<1, 32, 0, s.a>>>(x.data(), 2, 32);
  must(cudaEventRecord(forked, s.a));
  must(cudaStreamWaitEvent(s.b, forked, 0));
  add<<<1, 32, 0, s.b>>>(y.data(), x.data(), 32);
  must(cudaEventRecord(joined, s.b));
  must(cudaStreamWaitEvent(s.a, joined, 0));
  must(cudaMemsetAsync(x.data(), 0, 4, s.a));
  cudaGraph_t graph;
  must(cudaStreamEndCapture(s.a, &graph));
  std::size_t nodes = 0;
  must(cudaGraphGetNodes(graph, nullptr, &nodes));
  expect(nodes == 3, "a graph of three nodes");
  must(cudaDeviceSynchronize());
  expect(y.get()[0] == 0, "a capture runs nothing");
  cudaGraphExec_t exec;
  must(cudaGraphInstantiate(&exec, graph, 0));
  must(cudaGraphDestroy(graph));
  for (int i = 0; i < 3; ++i) must(cudaGraphLaunch(exec, s.a));
  expect(y.get()[0] == 0, "a graph waits its turn");
  must(cudaStreamSynchronize(s.a));
  expect(y.get()[0] == 6 && x.get()[0] == 0 && x.get()[1] == 2, "a graph runs as often as it is launched");
  must(cudaGraphExecDestroy(exec));
  must(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeGlobal));
  void* p = nullptr;
  expect(cudaMalloc(&p, 16) == cudaErrorStreamCaptureUnsupported, "no allocation in a capture");
  expect(cudaStreamEndCapture(s.a, &graph) == cudaErrorStreamCaptureInvalidated && !graph, "which breaks the capture");
  must(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeGlobal));
  expect(cudaStreamSynchronize(s.a) == cudaErrorStreamCaptureUnsupported, "no waiting in a capture");
  cudaStreamEndCapture(s.a, &graph);
  cudaGetLastError();
  must(cudaEventDestroy(forked)), must(cudaEventDestroy(joined));
}

void errors_are_reported() {
  Buffer<int> x(128);
  bounded<<<1, 65>>>(x.data());
  expect(cudaPeekAtLastError() == cudaErrorInvalidConfiguration, "more threads than __launch_bounds__");
  expect(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess, "an error is told once");
  bounded<<<0, 64>>>(x.data());
  expect(cudaGetLastError() == cudaErrorInvalidConfiguration, "an empty grid");
  uses_shared<<<1, 32, 64 << 10>>>(x.data());
  expect(cudaGetLastError() == cudaErrorInvalidValue, "more than 48 KiB without asking");
  must(cudaFuncSetAttribute(uses_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10));
  uses_shared<<<1, 32, 64 << 10>>>(x.data());
  expect(cudaGetLastError() == cudaSuccess && x.get()[0] == 31, "more than 48 KiB after asking");
  expect(cudaFuncSetAttribute(uses_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 << 10) == cudaErrorInvalidValue,
         "more than there is");
  cudaGetLastError();
  cudaFuncAttributes attributes;
  must(cudaFuncGetAttributes(&attributes, bounded));
  expect(attributes.maxThreadsPerBlock == 64 && attributes.sharedSizeBytes == 0, "attributes of a kernel");
  int host[4] = {};
  expect(cudaMemcpy(x.data() + 126, host, 16, cudaMemcpyHostToDevice) == cudaErrorInvalidValue, "a copy beyond an allocation");
  expect(cudaMemcpy(host, x.data(), 16, cudaMemcpyHostToDevice) == cudaErrorInvalidMemcpyDirection, "a copy in the wrong direction");
  expect(cudaFree(x.data() + 1) == cudaErrorInvalidValue, "what was not allocated cannot be freed");
  cudaGetLastError();

  emulation::on_fault(emulation::OnFault::report);
  fill<<<1, 32>>>(nullptr, 1, 32);
  expect(cudaGetLastError() == cudaSuccess, "a fault comes with the work, not with the launch");
  expect(cudaDeviceSynchronize() == cudaErrorLaunchFailure, "a fault is an error of the device");
  void* p = nullptr;
  expect(cudaMalloc(&p, 16) == cudaErrorLaunchFailure, "which stays");
  expect_text(emulation::fault(), "a null pointer", "the fault");
  expect(cudaDeviceSynchronize() == cudaSuccess && emulation::fault().empty(), "a fault is told once");
  {
    Streams s;
    Buffer<int> y(32);
    int* const freed = y.data();
    must(cudaFreeAsync(freed, s.a));
    fill<<<1, 32, 0, s.a>>>(freed, 1, 32);
    expect(cudaStreamSynchronize(s.a) == cudaErrorLaunchFailure, "use after free");
    expect_text(emulation::fault(), "memory that was freed", "use after free");
  }
  cudaGetLastError();
  emulation::on_fault(emulation::OnFault::stop);
}

void counters_count() {
  Buffer<int> x(1024);
  emulation::reset_counters();
  emulation::count_accesses(true);
  fill<<<4, 256>>>(x.data(), 1, 1024);
  must(cudaDeviceSynchronize());
  emulation::count_accesses(false);
  auto const c = emulation::counters();
  expect(c.launches == 1 && c.global_requests == 32 && c.global_sectors == 128 && c.global_bytes == 4096, "requests and sectors");
  bool stored = false;
  for (auto const& o : emulation::opcodes()) stored |= o.opcode.starts_with("st.global") && o.executed == 32;
  expect(stored, "opcodes");
  std::size_t const before = emulation::device_bytes();
  Buffer<int> y(100);
  expect(emulation::device_bytes() == before + 400, "bytes on the device");
}

}  // namespace

int main() {
  streams_run_late();
  events_order_streams();
  graphs_replay();
  errors_are_reported();
  counters_count();
  return report();
}
