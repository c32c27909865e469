#pragma once

// Graphs of the stand-in runtime.

#include <memory>

#include "runtime.hpp"

enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0 };
struct CUgraph_st {
  std::shared_ptr<const cuda_fibers::Graph> work;
};
struct CUgraphExec_st {
  std::shared_ptr<const cuda_fibers::Graph> work;
};
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraphExec_st*;

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr) return cuda_fibers::answer(cudaErrorStreamCaptureUnsupported);
  if (cuda_fibers::capturing != nullptr) return cuda_fibers::answer(cudaErrorIllegalState);
  if (const cudaError_t e = cuda_fibers::answer(); e != cudaSuccess) return e;
  stream->capture = cuda_fibers::capturing = std::make_shared<cuda_fibers::Graph>();
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (stream == nullptr || stream->capture == nullptr) return cuda_fibers::answer(cudaErrorIllegalState);
  const std::shared_ptr<cuda_fibers::Graph> work = std::move(stream->capture);
  stream->capture = cuda_fibers::capturing = nullptr;
  if (const cudaError_t e = cuda_fibers::answer(work->broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess); e != cudaSuccess) return e;
  *graph = new CUgraph_st{work};
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long = 0) {
  *made = nullptr;
  if (const cudaError_t e = cuda_fibers::answer(); e != cudaSuccess) return e;
  *made = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (const cudaError_t e = cuda_fibers::answer(); e != cudaSuccess) return e;
  cuda_fibers::submit(stream, [work = graph->work] {
    for (const auto& node : work->nodes) node();
  });
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return cuda_fibers::destroy(graph); }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cuda_fibers::destroy(graph); }
