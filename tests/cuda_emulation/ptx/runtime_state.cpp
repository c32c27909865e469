#include "runtime_state.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace ptx {
namespace {

void print_report() {
  Device& device = Device::instance();
  Counters const& c = device.counters;
  auto const number = [](u64 n) { return static_cast<unsigned long long>(n); };
  std::fprintf(stderr, "ptx: %llu launches, %llu warp instructions\n", number(c.launches),
               number(c.warp_instructions));
  std::fprintf(stderr, "ptx: global memory: %llu requests, %llu sectors, %llu bytes asked for\n",
               number(c.global_requests), number(c.global_sectors), number(c.global_bytes));
  std::fprintf(stderr, "ptx: shared memory: %llu requests, %llu waves, %llu without conflicts\n",
               number(c.shared_requests), number(c.shared_waves), number(c.shared_ideal_waves));
  auto const opcodes = opcode_counts(device.loaded());
  for (std::size_t i = 0; i < std::min<std::size_t>(20, opcodes.size()); ++i)
    std::fprintf(stderr, "%14llu  %s\n", number(opcodes[i].executed), opcodes[i].opcode.c_str());
  auto const conflicts = conflict_counts(device.loaded());
  for (std::size_t i = 0; i < std::min<std::size_t>(10, conflicts.size()); ++i)
    std::fprintf(stderr, "%14llu  waves for %llu: %s\n", number(conflicts[i].waves),
                 number(conflicts[i].ideal_waves), conflicts[i].where.c_str());
}

}  // namespace

Device& Device::instance() {
  static Device* const device = new Device;  // outlives every static of the program
  return *device;
}

Device::Device() {
  eager = std::getenv("PTX_EMULATION_EAGER") != nullptr;
  if (std::getenv("PTX_EMULATION_STATS")) {
    counting = true;
    std::atexit(print_report);
  }
}

bool Device::load(std::string_view name) {
  auto const found = std::find_if(unread.begin(), unread.end(), [&](std::string const& text) { return text.find(name) != text.npos; });
  if (found == unread.end()) return false;
  std::string const text = std::move(*found);
  unread.erase(found);
  modules.push_back(parse(text, memory));
  return true;
}

std::vector<Module const*> Device::loaded() const {
  std::vector<Module const*> out;
  for (auto const& module : modules) out.push_back(module.get());
  return out;
}

KernelInfo* Device::kernel(void const* host_function) {
  auto const found = kernels.find(host_function);
  if (found == kernels.end()) return nullptr;
  KernelInfo& info = found->second;
  auto const look = [&] {
    for (auto const& module : modules)
      if (Function const* const f = module->find(info.name)) return info.module = module.get(), info.function = f, true;
    return false;
  };
  if (!info.function) guarded([&] { while (!look() && load(info.name)) {} });
  return info.function ? &info : nullptr;
}

u64 Device::variable(void const* host_variable) {
  auto const found = variables.find(host_variable);
  if (found == variables.end()) return 0;
  u64 address = 0;
  auto const look = [&] {
    for (auto const& module : modules)
      if (auto const v = module->variables.find(found->second); v != module->variables.end()) return address = v->second, true;
    return false;
  };
  guarded([&] { while (!look() && load(found->second)) {} });
  return address;
}

std::shared_ptr<Stream> Device::stream(cudaStream_t handle) {
  // 1 and 2 are the legacy and the per-thread default stream by name.
  if (reinterpret_cast<u64>(handle) <= 2) return default_stream;
  for (auto const& s : streams)
    if (s.get() == reinterpret_cast<Stream*>(handle)) return s;
  return nullptr;
}

void Device::submit(std::shared_ptr<Stream> const& s, Work work) {
  if (s->capture) {
    s->capture->nodes.push_back(std::move(work));
    return;
  }
  if (sticky != cudaSuccess || !there) return;
  // The default stream and every blocking stream wait for what was put in the other before.
  auto const wait_for = [&](Stream& to, std::shared_ptr<Stream> const& other) {
    if (other->done == other->enqueued || other->capture) return;
    to.queue.push_back([this, other, position = other->enqueued] { drain(*other, position); });
    ++to.enqueued;
  };
  if (s == default_stream) {
    for (auto const& other : streams)
      if (other->blocking) wait_for(*s, other);
  } else if (s->blocking) {
    wait_for(*s, default_stream);
  }
  s->queue.push_back(std::move(work));
  ++s->enqueued;
  if (eager) drain(*s);
}

void Device::drain(Stream& s, u64 position) {
  while (s.done < position && !s.queue.empty()) {
    Work const work = std::move(s.queue.front());
    s.queue.pop_front();
    ++s.done;
    guarded(work);
  }
}

void Device::drain_all() {
  drain(*default_stream);
  for (std::size_t i = 0; i < streams.size(); ++i) drain(*streams[i]);
}

bool Device::breaks_capture() {
  bool any = false;
  for (auto const& s : streams)
    if (s->capture) any = s->capture_broken = true;
  return any;
}

cudaError_t Device::result(cudaError_t error) {
  if (!there) error = cudaErrorNoDevice;
  if (sticky != cudaSuccess) error = sticky;
  if (error != cudaSuccess) last = error;
  return error;
}

void Device::guarded(Work const& f) {
  if (sticky != cudaSuccess) return;
  try {
    f();
  } catch (Fault const& caught) {
    if (on_fault == emulation::OnFault::stop) {
      std::fflush(stdout);
      std::fprintf(stderr, "ptx: %s\n", caught.what());
      std::fflush(stderr);
      std::_Exit(70);
    }
    fault = caught.what();
    sticky = last = cudaErrorLaunchFailure;
    auto const forget = [](Stream& s) { s.queue.clear(), s.done = s.enqueued; };
    forget(*default_stream);
    for (auto const& s : streams) forget(*s);
  }
}

std::vector<std::string> ptx_of(void const* fat_binary_wrapper) {
  struct Wrapper {
    int magic, version;
    u8 const* data;
  };
  struct Header {  // of the whole
    u32 magic;
    u16 version, header_bytes;
    u64 bytes;
  };
  struct Entry {
    u16 kind, version;
    u32 header_bytes;
    u64 bytes;
  };
  auto const* const wrapper = static_cast<Wrapper const*>(fat_binary_wrapper);
  Header header;
  std::memcpy(&header, wrapper->data, sizeof header);
  if (header.magic != 0xba55ed50) throw Fault("the program's fat binary has another format");
  std::vector<std::string> out;
  u8 const *at = wrapper->data + header.header_bytes, *const end = at + header.bytes;
  while (at < end) {
    Entry entry;
    std::memcpy(&entry, at, sizeof entry);
    auto const* const text = reinterpret_cast<char const*>(at + entry.header_bytes);
    if (entry.kind == 1) {
      std::string ptx(text, strnlen(text, entry.bytes));
      if (ptx.find(".version") == ptx.npos)
        throw Fault("the program's PTX is compressed; build it with nvcc --no-compress");
      out.push_back(std::move(ptx));
    }
    at += entry.header_bytes + entry.bytes;
  }
  if (out.empty()) throw Fault("no PTX in the program; build it with code=compute_80");
  return out;
}

namespace emulation {

void on_fault(OnFault how) { Locked()->on_fault = how; }
std::string fault() {
  Locked d;
  d->drain_all();
  d->sticky = d->last = cudaSuccess;
  return std::exchange(d->fault, {});
}
void order(Order how) { Locked()->eager = how == Order::eager; }
void device_there(bool there) { Locked()->there = there; }
void count_accesses(bool on) { Locked()->counting = on; }
Counters counters() { return Locked()->counters; }
void reset_counters() {
  Locked d;
  d->counters = {};
  for (auto const& module : d->modules)
    for (Instruction const& i : module->code)
      i.executed = i.requests = i.waves = i.ideal_waves = 0;
}
std::vector<OpcodeCount> opcodes() { return opcode_counts(Locked()->loaded()); }
std::vector<ConflictCount> conflicts() { return conflict_counts(Locked()->loaded()); }
u64 device_bytes() { return Locked()->memory.in_use(); }

}  // namespace emulation
}  // namespace ptx
