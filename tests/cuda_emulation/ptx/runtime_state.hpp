#pragma once
// The emulated device behind the CUDA runtime's functions.

#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "emulation.hpp"
#include "machine.hpp"
#include "memory.hpp"
#include "program.hpp"

namespace ptx {

using Work = std::function<void()>;

struct Graph {
  std::vector<Work> nodes;  // in an order that keeps every dependency
};

struct Stream {
  std::deque<Work> queue;
  u64 enqueued = 0, done = 0;
  bool blocking = true;  // ordered with the default stream
  std::shared_ptr<Graph> capture;
  bool capture_broken = false;
};

struct Event {
  std::shared_ptr<Stream> stream;
  u64 position = 0;
  std::shared_ptr<Graph> capture;
  u64 at = 0;  // instructions run, as the clock
};

struct KernelInfo {
  std::string name;
  Module const* module = nullptr;
  Function const* function = nullptr;
  u32 max_dynamic_shared = 0;  // as set; 0: 48 KiB with the static part
};

class Device {
 public:
  static Device& instance();
  std::recursive_mutex mutex;

  Memory memory;
  Counters counters;
  bool counting = false;
  emulation::OnFault on_fault = emulation::OnFault::stop;
  bool eager = false;
  bool there = true;
  std::string fault;
  cudaError_t sticky = cudaSuccess, last = cudaSuccess;

  // ---- programs ----
  std::vector<std::string> unread;  // PTX not parsed yet: a module is, once something of it is asked for
  std::vector<std::unique_ptr<Module>> modules;
  std::unordered_map<void const*, KernelInfo> kernels;  // by the host's function
  std::unordered_map<void const*, std::string> variables;
  KernelInfo* kernel(void const* host_function);
  u64 variable(void const* host_variable);
  std::vector<Module const*> loaded() const;

  // ---- streams ----
  std::shared_ptr<Stream> stream(cudaStream_t handle);
  std::shared_ptr<Stream> default_stream = std::make_shared<Stream>();
  std::vector<std::shared_ptr<Stream>> streams;
  /// Puts work in a stream, or in the graph being captured.
  void submit(std::shared_ptr<Stream> const&, Work);
  /// Runs a stream up to a position.
  void drain(Stream&, u64 position);
  void drain(Stream& s) { drain(s, s.enqueued); }
  void drain_all();
  /// Whether a call that no graph can hold came during a capture; breaks the capture.
  bool breaks_capture();

  /// Remembers and gives back an error; success passes through, unless the device has failed or is not there.
  cudaError_t result(cudaError_t error = cudaSuccess);
  /// Runs f; a Fault stops the program or becomes the device's error.
  void guarded(Work const& f);

 private:
  Device();
  /// Parses one module that speaks of `name`; false if none is left that does.
  bool load(std::string_view name);
};

/// The runtime's functions are safe to call from several threads.
struct Locked {
  Device& device = Device::instance();
  std::lock_guard<std::recursive_mutex> lock{device.mutex};
  Device* operator->() const { return &device; }
};

/// The PTX of a fat binary as nvcc embeds it.
std::vector<std::string> ptx_of(void const* fat_binary_wrapper);

}  // namespace ptx
