#pragma once

// What device benchmarks share: memory to read, reading it, and the time of a graph of calls that
// meets none of it in a cache.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/memory.cuh>

namespace bench {

using namespace kvcondense;

/// Ends the program where anything fails: a table with holes is none.
inline void must(Status s, const char* what) {
  if (s == Status::ok) return;
  std::fprintf(stderr, "%s: %s\n", what, to_string(s));
  std::exit(1);
}
inline void must(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
  std::exit(1);
}
inline int attribute(cudaDeviceAttr what) {
  int device = 0, value = 0;
  must(cudaGetDevice(&device), "cudaGetDevice");
  must(cudaDeviceGetAttribute(&value, what, device), "cudaDeviceGetAttribute");
  return value;
}

inline constexpr int sweep_threads = 256;

/// Random bits of which every half is a number between -1 and 1, so that they may be pages of any
/// kind.
template <int Threads>
__global__ void __launch_bounds__(Threads) fill_halves(uint4* to, std::size_t n) {
  const std::size_t step = std::size_t{gridDim.x} * Threads;
  for (std::size_t i = std::size_t{blockIdx.x} * Threads + threadIdx.x; i < n; i += step) {
    std::uint64_t x[2] = {2 * i + 1, 2 * i + 2};
    for (std::uint64_t& z : x) {
      z *= 0x9e3779b97f4a7c15u;
      z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
      z = (z ^ z >> 27) * 0x94d049bb133111ebu;
      z = (z ^ z >> 31) & 0xbbffbbffbbffbbffu;
    }
    to[i] = {static_cast<unsigned>(x[0]), static_cast<unsigned>(x[0] >> 32),
             static_cast<unsigned>(x[1]), static_cast<unsigned>(x[1] >> 32)};
  }
}
/// Reads everything once, four loads of a thread in flight. What it writes only keeps the loads.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    read_all(const uint4* from, std::size_t n, unsigned* out) {
  const std::size_t step = std::size_t{gridDim.x} * Threads;
  unsigned all = 0;
  const auto take = [&](const uint4& x) { all ^= x.x ^ x.y ^ x.z ^ x.w; };
  std::size_t i = std::size_t{blockIdx.x} * Threads + threadIdx.x;
  for (; i + 3 * step < n; i += 4 * step) {
    const uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
    take(a), take(b), take(c), take(d);
  }
  for (; i < n; i += step) take(from[i]);
  if (all == 0x5bd1e995u) *out = all;
}

/// Bytes in device memory that benchmarks read. `bytes` is rounded up to whole chunks of 16.
class Memory {
 public:
  Memory(const Context<Cuda>& ctx, std::size_t bytes) : chunks_((bytes + 15) / 16) {
    must(array_.resize(static_cast<index_t>(chunks_)), "device memory");
    must(out_.resize(1), "device memory");
    must(cuda::launch(ctx, fill_halves<sweep_threads>, grid(ctx), sweep_threads, 0, array_.data(),
                      chunks_),
         "fill_halves");
    must(ctx.wait(), "fill_halves");
  }
  std::byte* data() { return reinterpret_cast<std::byte*>(array_.data()); }
  std::size_t bytes() const { return chunks_ * 16; }
  void read(const Context<Cuda>& ctx) {
    must(cuda::launch(ctx, read_all<sweep_threads>, grid(ctx), sweep_threads, 0, array_.data(),
                      chunks_, out_.data()),
         "read_all");
  }

 private:
  /// As many blocks as run together, or fewer.
  cuda::Grid grid(const Context<Cuda>& ctx) const {
    return {std::min(cuda::covering(static_cast<index_t>(chunks_), sweep_threads),
                     index_t{8} * ctx.facts().multiprocessors)};
  }
  std::size_t chunks_;
  cuda::DeviceArray<uint4> array_;
  cuda::DeviceArray<unsigned> out_;
};

/// Work that was captured once and is started again and again.
class Graph {
 public:
  template <class Enqueue>
  Graph(const Context<Cuda>& ctx, Enqueue&& enqueue) {
    cudaGraph_t graph = nullptr;
    must(cudaStreamBeginCapture(ctx.stream(), cudaStreamCaptureModeThreadLocal), "capture");
    enqueue();
    must(cudaStreamEndCapture(ctx.stream(), &graph), "capture");
    must(cudaGraphInstantiate(&exec_, graph, 0), "cudaGraphInstantiate");
    must(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  Graph(Graph&& o) noexcept : exec_(o.exec_) { o.exec_ = nullptr; }
  ~Graph() {
    if (exec_ != nullptr) static_cast<void>(cudaGraphExecDestroy(exec_));
  }
  void start(const Context<Cuda>& ctx) const {
    must(cudaGraphLaunch(exec_, ctx.stream()), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

/// Microseconds of graphs on a device whose cache was filled with something else before.
class Clock {
 public:
  Clock(const Context<Cuda>& ctx, std::size_t flush_bytes) : ctx_(&ctx), other_(ctx, flush_bytes) {
    must(cudaEventCreate(&begin_), "cudaEventCreate");
    must(cudaEventCreate(&end_), "cudaEventCreate");
  }
  ~Clock() {
    static_cast<void>(cudaEventDestroy(begin_));
    static_cast<void>(cudaEventDestroy(end_));
  }
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

  double time(const Graph& graph) {
    other_.read(*ctx_);  // meanwhile the host enqueues the rest: the graph does not wait for it
    must(cudaEventRecord(begin_, ctx_->stream()), "cudaEventRecord");
    graph.start(*ctx_);
    must(cudaEventRecord(end_, ctx_->stream()), "cudaEventRecord");
    must(cudaEventSynchronize(end_), "a timed graph");
    float milliseconds = 0;
    must(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return 1e3 * static_cast<double>(milliseconds);
  }

 private:
  const Context<Cuda>* ctx_;
  Memory other_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

struct Times {
  std::vector<double> all;
  double median() const { return sorted()[all.size() / 2]; }
  double least() const { return sorted().front(); }
  double most() const { return sorted().back(); }

 private:
  std::vector<double> sorted() const {
    std::vector<double> s = all;
    std::sort(s.begin(), s.end());
    return s;
  }
};

}  // namespace bench
