#pragma once

// Streams of the stand-in runtime. Work is done at once, but where a stream is captured: there it becomes a node of a graph, which a launch of the
// graph does.

#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace cuda_fibers {

/// Work in the order in which it was captured. Arguments of kernels are those of the capture, as on a device.
struct Graph {
  std::vector<std::function<void()>> nodes;
  bool broken = false;  ///< somebody allocated or waited meanwhile
};

}  // namespace cuda_fibers

struct CUstream_st {
  std::shared_ptr<cuda_fibers::Graph> capture;
};
using cudaStream_t = CUstream_st*;

namespace cuda_fibers {

inline std::shared_ptr<Graph> capturing;  ///< one at a time, as there is one thread of the host

/// What no graph can hold was called: the capture cannot be ended well.
inline bool breaks_capture() {
  if (capturing == nullptr) return false;
  return capturing->broken = true;
}

/// `work` may be called more than once.
template <class Work>
void submit(cudaStream_t stream, Work&& work) {
  if (stream != nullptr && stream->capture != nullptr) stream->capture->nodes.push_back(std::forward<Work>(work));
  else work();
}

}  // namespace cuda_fibers
