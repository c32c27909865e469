// Streams, events and graphs.

#include <algorithm>

#include "runtime_state.hpp"

namespace {

using ptx::Event;
using ptx::Graph;
using ptx::Locked;
using ptx::Stream;

Event* event_of(cudaEvent_t e) { return reinterpret_cast<Event*>(e); }

cudaError_t make_stream(cudaStream_t* to, unsigned flags) {
  Locked d;
  auto made = std::make_shared<Stream>();
  made->blocking = flags != cudaStreamNonBlocking;
  *to = reinterpret_cast<cudaStream_t>(made.get());
  d->streams.push_back(std::move(made));
  return d->result();
}
cudaError_t make_event(cudaEvent_t* to) {
  *to = reinterpret_cast<cudaEvent_t>(new Event);
  return Locked()->result();
}
bool reached(Event const& e) { return !e.stream || e.stream->done >= e.position; }

// A graph and its executable are both a shared list of work.
using GraphHandle = std::shared_ptr<Graph>;
GraphHandle& graph_of(void* handle) { return *static_cast<GraphHandle*>(handle); }

}  // namespace

extern "C" {

// ---- streams ----

cudaError_t cudaStreamCreate(cudaStream_t* to) { return make_stream(to, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* to, unsigned flags) {
  return make_stream(to, flags);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* to, unsigned flags, int) {
  return make_stream(to, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream || stream == d->default_stream) return d->result(cudaErrorInvalidResourceHandle);
  d->drain(*stream);
  d->streams.erase(std::find(d->streams.begin(), d->streams.end(), stream));
  return d->result();
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  if (stream->capture) {
    stream->capture_broken = true;
    return d->result(cudaErrorStreamCaptureUnsupported);
  }
  d->drain(*stream);
  return d->result();
}
// A query lets some work be done, so that a host that asks again and again gets an answer.
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  if (stream->queue.empty()) return d->result();
  d->drain(*stream, stream->done + 1);
  return d->sticky != cudaSuccess ? d->result() : cudaErrorNotReady;
}
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  *flags = stream->blocking ? cudaStreamDefault : cudaStreamNonBlocking;
  return d->result();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  Event const& e = *event_of(event);
  if (e.capture) {  // the stream joins the capture
    stream->capture = e.capture;
  } else if (e.stream && !stream->capture) {
    ptx::Device* const device = &d.device;
    d->submit(stream, [device, e] { device->drain(*e.stream, e.position); });
  }
  return d->result();
}
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  d->submit(stream, [function, data] { function(data); });
  return d->result();
}

// ---- events ----

cudaError_t cudaEventCreate(cudaEvent_t* to) { return make_event(to); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* to, unsigned) { return make_event(to); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Locked d;
  delete event_of(event);
  return d->result();
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  Event& e = *event_of(event);
  e.capture = stream->capture;
  if (stream->capture) return d->result();
  e.stream = stream, e.position = stream->enqueued;
  e.at = d->counters.warp_instructions;
  return d->result();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Locked d;
  Event const& e = *event_of(event);
  if (e.capture) return d->result(cudaErrorStreamCaptureUnsupported);
  if (e.stream) d->drain(*e.stream, e.position);
  return d->result();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  Locked d;
  Event const& e = *event_of(event);
  if (reached(e)) return d->result();
  d->drain(*e.stream, e.stream->done + 1);
  return d->sticky != cudaSuccess ? d->result() : cudaErrorNotReady;
}
// There is no time here: a positive number, and no measure of anything.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  Locked d;
  if (!event_of(begin)->stream || !event_of(end)->stream) return d->result(cudaErrorInvalidResourceHandle);
  if (!reached(*event_of(begin)) || !reached(*event_of(end))) return cudaErrorNotReady;
  *milliseconds = 1;
  return d->result();
}

// ---- graphs ----

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  if (stream == d->default_stream) return d->result(cudaErrorStreamCaptureUnsupported);
  if (stream->capture) return d->result(cudaErrorIllegalState);
  stream->capture = std::make_shared<Graph>();
  stream->capture_broken = false;
  return d->result();
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* to) {
  Locked d;
  *to = nullptr;
  auto const stream = d->stream(handle);
  if (!stream || !stream->capture) return d->result(cudaErrorIllegalState);
  auto const graph = stream->capture;
  bool broken = false;
  for (auto const& s : d->streams) {
    if (s->capture != graph) continue;
    broken |= s->capture_broken;
    s->capture.reset();
    s->capture_broken = false;
  }
  if (broken) return d->result(cudaErrorStreamCaptureInvalidated);
  *to = reinterpret_cast<cudaGraph_t>(new GraphHandle(graph));
  return d->result();
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  *status = !stream->capture          ? cudaStreamCaptureStatusNone
            : stream->capture_broken ? cudaStreamCaptureStatusInvalidated
                                     : cudaStreamCaptureStatusActive;
  return d->result();
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  Locked d;
  if (nodes) return d->result(cudaErrorNotSupported);
  *count = graph_of(graph)->nodes.size();
  return d->result();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* to, cudaGraph_t graph, unsigned long long) {
  *to = reinterpret_cast<cudaGraphExec_t>(new GraphHandle(std::make_shared<Graph>(*graph_of(graph))));
  return Locked()->result();
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  Locked d;
  auto const stream = d->stream(handle);
  if (!stream) return d->result(cudaErrorInvalidResourceHandle);
  d->submit(stream, [graph = graph_of(exec)] {
    for (ptx::Work const& node : graph->nodes) node();
  });
  return d->result();
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete &graph_of(graph);
  return Locked()->result();
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete &graph_of(exec);
  return Locked()->result();
}

}  // extern "C"
