#pragma once

// One block of CUDA threads on one OS thread: a fiber each, run until they wait. What waits for what is
// checked: a barrier that not all reach, a warp operation whose lanes disagree, copies nobody waits for.
// Nothing here may be seen by TSan, so that a race it reports is the kernel's: plain arrays, no std containers.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fiber.hpp"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}  // NOLINT: as CUDA's
};
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim{}, gridDim{};

namespace cuda_fibers {

inline constexpr unsigned warp_size = 32, most_threads = 1024, most_copies = 256;
inline constexpr std::size_t most_shared = 227 * 1024;

/// How kernels run. Tests run each kernel in several ways.
struct Options {
  std::uint64_t seed = 0;       ///< 0: threads and blocks in order; else in a random order from this seed
  bool late_copies = true;      ///< cp.async lands at the wait that guarantees it; false: at once
  bool poison_shared = true;    ///< dynamic shared memory is NaN where a block begins, and where the kernel forgets it
};
struct Counts {
  std::uint64_t launches = 0, blocks = 0, switches = 0, barriers = 0, warp_operations = 0;
};
inline Counts counts;

/// Says what is wrong and where, and ends the program.
[[noreturn]] CUDA_FIBERS_UNSEEN inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_fibers: %s [block %u,%u,%u thread %u,%u,%u]\n", what, blockIdx.x, blockIdx.y,
               blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  std::fflush(stderr);
  std::abort();
}

/// How a program of tests runs kernels where no test says otherwise: KVCONDENSE_FIBERS is a seed, and ",eager" behind it where copies land at once.
inline Options options_of(const char* said) {
  Options o;
  if (said == nullptr) return o;
  char* end = nullptr;
  o.seed = std::strtoull(said, &end, 10);
  o.late_copies = std::strcmp(end, ",eager") != 0;
  if (end == said || (o.late_copies && *end != 0)) fail("KVCONDENSE_FIBERS is a seed, maybe with \",eager\" behind it");
  return o;
}
inline Options options = options_of(std::getenv("KVCONDENSE_FIBERS"));

/// What the lanes of a warp do together. Lanes that meet must do the same thing.
enum class WarpOp : unsigned {
  none, sync, shuffle, shuffle_xor, shuffle_down, shuffle_up, ballot, match, reduce, mma, movmatrix, ldmatrix,
};
constexpr const char* to_string(WarpOp op) {
  constexpr const char* names[] = {"nothing", "__syncwarp", "__shfl_sync", "__shfl_xor_sync", "__shfl_down_sync",
                                   "__shfl_up_sync", "__ballot_sync", "__match_any_sync", "__reduce_sync", "mma",
                                   "movmatrix", "ldmatrix"};
  return names[static_cast<unsigned>(op)];
}

enum class Wait : std::uint8_t { runs, at_barrier, in_warp_operation, exited };

struct Copy {
  void* to;
  const void* from;  ///< null: it has landed
  unsigned bytes;
  int group;
};

/// One CUDA thread.
struct Thread {
  Place place;
  StackMemory stack;
  SanitizerStack sanitizer;
  uint3 index{};
  unsigned linear = 0;
  Wait wait = Wait::exited;
  unsigned line = 0;  ///< of the source, where it waits
  WarpOp op = WarpOp::none;
  std::uint32_t mask = 0;
  unsigned meetings = 0;  ///< warp operations so far
  unsigned barriers = 0, warp_barriers = 0;
  int group = 0;          ///< cp.async groups committed
  unsigned copies_open = 0;
  Copy copies[most_copies];
};

/// What a lane brings to a warp operation. Two sets: a lane may begin the next operation while others still
/// read this one.
struct alignas(64) Slot {
  unsigned char bytes[64];
};
/// TSan orders memory through the addresses of these: one for this barrier and one for the next, since a thread
/// that is ahead enters the next barrier while others have yet to leave this one.
struct BarrierOrder {
  int tags[2] = {};
};
struct Warp {
  Slot slots[2][warp_size];
  BarrierOrder order;
};

struct Machine {
  Thread* threads = nullptr;
  Warp* warps = nullptr;
  unsigned stacks = 0;  ///< threads that have one
  Place scheduler;
  SanitizerStack scheduler_sanitizer;
  Thread* running = nullptr;
  unsigned char* shared = nullptr;
  std::size_t shared_bytes = 0;
  bool forgets = false;  ///< shared memory, at the next barrier
  void (*entry)(void*) = nullptr;
  void* argument = nullptr;
  unsigned size = 0, live = 0;
  unsigned order[most_threads];
  std::uint64_t random = 1;
  int grid_order = 0;
  BarrierOrder barrier_order;
};
inline Machine machine;

inline unsigned lane() { return machine.running->linear % warp_size; }
CUDA_FIBERS_UNSEEN inline Warp& warp() { return machine.warps[machine.running->linear / warp_size]; }

CUDA_FIBERS_UNSEEN inline std::uint64_t next_random() {
  std::uint64_t& r = machine.random;
  r ^= r << 13, r ^= r >> 7, r ^= r << 17;
  return r;
}

/// Back to the scheduler, until it picks this thread again.
CUDA_FIBERS_UNSEEN inline void pause() {
  Thread& me = *machine.running;
  me.sanitizer.leave_for(machine.scheduler_sanitizer, me.wait == Wait::exited);
  me.place.switch_to(machine.scheduler);
  machine.running->sanitizer.arrived(nullptr);
}
CUDA_FIBERS_UNSEEN inline void resume(Thread& t) {
  machine.running = &t;
  threadIdx = t.index;
  ++counts.switches;
  machine.scheduler_sanitizer.leave_for(t.sanitizer, false);
  machine.scheduler.switch_to(t.place);
  machine.scheduler_sanitizer.arrived(nullptr);
}
CUDA_FIBERS_UNSEEN inline void thread_main() {
  machine.running->sanitizer.arrived(&machine.scheduler_sanitizer);
  order_acquire(&machine.grid_order);
  machine.entry(machine.argument);
  order_release(&machine.grid_order);
  machine.running->wait = Wait::exited;
  pause();
  std::abort();
}

CUDA_FIBERS_UNSEEN inline void make_threads(unsigned n) {
  if (machine.threads == nullptr) {
    machine.threads = new Thread[most_threads];
    machine.warps = new Warp[most_threads / warp_size];
  }
  for (; machine.stacks < n; ++machine.stacks) {
    Thread& t = machine.threads[machine.stacks];
    if (!t.stack.map(stack_bytes)) fail("no memory for a stack");
    t.sanitizer.bottom = t.stack.bottom;
    t.sanitizer.bytes = t.stack.bytes;
    t.sanitizer.create();
  }
}

/// Nobody can run: what everybody is waiting for.
[[noreturn]] CUDA_FIBERS_UNSEEN inline void report_deadlock() {
  std::fprintf(stderr, "cuda_fibers: deadlock\n");
  for (unsigned i = 0; i < machine.size; ++i) {
    const Thread& t = machine.threads[i];
    if (t.wait == Wait::exited) std::fprintf(stderr, "  thread %u exited\n", i);
    if (t.wait == Wait::at_barrier) std::fprintf(stderr, "  thread %u in __syncthreads, line %u\n", i, t.line);
    if (t.wait == Wait::in_warp_operation)
      std::fprintf(stderr, "  thread %u in %s of lanes %08x, line %u\n", i, to_string(t.op), t.mask, t.line);
  }
  fail("deadlock: not all threads reach the barrier or the warp operation");
}

CUDA_FIBERS_UNSEEN inline void poison_shared() {
  if (options.poison_shared && machine.shared_bytes > 0) std::memset(machine.shared, 0xff, machine.shared_bytes);
}
CUDA_FIBERS_UNSEEN inline void forget_shared() { machine.forgets = true; }
/// All threads are at the barrier that tag orders: what they did comes before, what they do comes behind.
CUDA_FIBERS_UNSEEN inline void forget_at(int* tag) {
  for (unsigned i = 0; i < machine.size; ++i)
    if (machine.threads[i].copies_open > 0) fail("a thread forgets shared memory with cp.async copies in flight");
  order_acquire(tag);
  poison_shared();
  order_release(tag);
  machine.forgets = false;
}

/// Lets the block go on when all its threads are at one barrier.
CUDA_FIBERS_UNSEEN inline void release_barrier() {
  unsigned line = 0;
  for (unsigned i = 0; i < machine.size; ++i) {
    const Thread& t = machine.threads[i];
    if (t.wait != Wait::at_barrier) report_deadlock();
    if (line != 0 && line != t.line) fail("threads of a block are in __syncthreads of different lines");
    line = t.line;
  }
  ++counts.barriers;
  if (machine.forgets) forget_at(&machine.barrier_order.tags[(machine.threads[0].barriers - 1) % 2]);
  for (unsigned i = 0; i < machine.size; ++i) machine.threads[i].wait = Wait::runs;
}

/// Runs one block to its end.
CUDA_FIBERS_UNSEEN inline void run_block(uint3 block, dim3 shape) {
  machine.scheduler_sanitizer.adopt_running();
  order_acquire(&machine.grid_order);  // blocks come one after another: they may reuse shared memory
  blockIdx = block;
  machine.size = machine.live = shape.x * shape.y * shape.z;
  machine.forgets = false;
  poison_shared();
  for (unsigned i = 0; i < machine.size; ++i) {
    Thread& t = machine.threads[i];
    t.index = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
    t.linear = i;
    t.wait = Wait::runs;
    t.op = WarpOp::none;
    t.meetings = t.barriers = t.warp_barriers = 0;
    t.group = 0, t.copies_open = 0;
    t.sanitizer.fake_stack = nullptr;
    t.place.start_at(&thread_main, t.stack.bottom, t.stack.bytes);
    machine.order[i] = i;
  }
  order_release(&machine.grid_order);
  while (machine.live > 0) {
    if (options.seed != 0)
      for (unsigned i = machine.size; i > 1; --i) {
        const unsigned j = static_cast<unsigned>(next_random() % i), k = machine.order[j];
        machine.order[j] = machine.order[i - 1];
        machine.order[i - 1] = k;
      }
    bool ran = false;
    for (unsigned i = 0; i < machine.size; ++i) {
      Thread& t = machine.threads[machine.order[i]];
      if (t.wait != Wait::runs) continue;
      ran = true;
      resume(t);
      if (t.wait != Wait::exited) continue;
      if (t.copies_open > 0) fail("a thread exits with cp.async copies in flight");
      --machine.live;
    }
    if (!ran) release_barrier();
  }
  ++counts.blocks;
}

CUDA_FIBERS_UNSEEN inline void wait_at_barrier(unsigned line) {
  int* tag = &machine.barrier_order.tags[machine.running->barriers++ % 2];
  order_release(tag);
  machine.running->wait = Wait::at_barrier;
  machine.running->line = line;
  pause();
  order_acquire(tag);
}

CUDA_FIBERS_UNSEEN inline int* next_warp_order() { return &warp().order.tags[machine.running->warp_barriers++ % 2]; }

/// Every lane of `mask` brings `bytes` bytes and goes on when all have arrived. Returns what they brought.
CUDA_FIBERS_UNSEEN inline const Slot* meet(std::uint32_t mask, WarpOp op, const void* mine, unsigned bytes,
                                           unsigned line) {
  Thread& me = *machine.running;
  const unsigned own = me.linear % warp_size, first = me.linear - own;
  if ((mask >> own & 1u) == 0) fail("a lane calls a warp operation whose mask does not name it");
  if (bytes > sizeof(Slot)) fail("a warp operation of more than 64 bytes a lane");
  Slot* slots = warp().slots[me.meetings++ % 2];
  for (unsigned i = 0; i < bytes; ++i) slots[own].bytes[i] = static_cast<const unsigned char*>(mine)[i];
  me.op = op, me.mask = mask, me.line = line, me.wait = Wait::in_warp_operation;
  bool all = true;
  for (unsigned i = 0; i < warp_size; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    if (first + i >= machine.size) fail("the mask of a warp operation names lanes that the block does not have");
    const Thread& other = machine.threads[first + i];
    if (other.wait == Wait::exited) fail("the mask of a warp operation names a lane that has exited");
    if (other.wait != Wait::in_warp_operation) {
      all = false;
      continue;
    }
    if (other.op == op && other.mask == mask && other.line == line) continue;
    std::fprintf(stderr, "cuda_fibers: lane %u: %s, lanes %08x, line %u; lane %u: %s, lanes %08x, line %u\n", own,
                 to_string(op), mask, line, i, to_string(other.op), other.mask, other.line);
    fail("lanes meet in different warp operations");
  }
  ++counts.warp_operations;
  if (!all) {
    pause();
    return slots;
  }
  for (unsigned i = 0; i < warp_size; ++i)
    if ((mask >> i & 1u) != 0) machine.threads[first + i].wait = Wait::runs;
  return slots;
}

/// What a lane brought.
template <class T>
CUDA_FIBERS_UNSEEN T brought(const Slot& slot) {
  static_assert(sizeof(T) <= sizeof(Slot));
  T value;
  for (unsigned i = 0; i < sizeof(T); ++i) reinterpret_cast<unsigned char*>(&value)[i] = slot.bytes[i];
  return value;
}

CUDA_FIBERS_UNSEEN inline void copy_later(void* to, const void* from, unsigned bytes) {
  Thread& me = *machine.running;
  if (me.copies_open == most_copies) fail("more than 256 cp.async copies of one thread in flight");
  Copy& c = me.copies[me.copies_open++];
  c.to = to, c.from = from, c.bytes = bytes, c.group = me.group;
}
CUDA_FIBERS_UNSEEN inline void commit_copies() { ++machine.running->group; }

/// The oldest copy that must have landed when all but the newest `keep` groups have.
CUDA_FIBERS_UNSEEN inline bool next_landing(int keep, Copy& out) {
  Thread& me = *machine.running;
  if (me.copies_open == 0 || me.copies[0].group >= me.group - keep) return false;
  out.to = me.copies[0].to, out.from = me.copies[0].from, out.bytes = me.copies[0].bytes;
  --me.copies_open;
  for (unsigned i = 0; i < me.copies_open; ++i) me.copies[i] = me.copies[i + 1];
  return true;
}

}  // namespace cuda_fibers
