#pragma once
// Warps and blocks. A warp keeps one program counter per lane and runs the lanes that are deepest
// in calls and, among these, lowest in the code first; so lanes that parted meet again by
// themselves. Instructions that lanes must run together wait until all have come.

#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "counters.hpp"
#include "memory.hpp"
#include "program.hpp"
#include "shared_memory.hpp"
#include "types.hpp"

namespace ptx {

struct Launch {
  Function const* kernel = nullptr;
  Dim3 grid, block;
  u32 dynamic_shared = 0;
  std::vector<u8> params;
  u64 block_limit = 500'000'000;  // warp instructions; no test needs so many
};

struct Block;

/// A copy by cp.async that has not landed.
struct Copy {
  u32 to = 0, bytes = 0, group = 0;
  u8 data[16];
};

struct Warp {
  struct Call {
    u32 return_pc, frame, local;
    Function const* function;
    Instruction const* at;
  };
  struct Lane {
    u32 pc = 0;
    u32 frame = 0;  // where its registers begin
    Function const* function = nullptr;
    u32 local = 0;  // where its local memory begins
    std::vector<Call> calls;
    std::vector<u8> stack;  // local memory
    std::vector<Copy> copies;
    u32 copy_group = 0;
  };
  struct alignas(64) Chunk {
    u8 bytes[64];
  };
  enum class State : u8 { running, at_barrier, done };

  Block* block = nullptr;
  u32 index = 0;
  State state = State::running;
  Mask live = 0;    // lanes that have not exited
  Mask parked = 0;  // lanes that wait for others at an instruction
  Mask group = 0;   // the lanes that run now, all at `pc`
  u32 pc = 0;
  u32 until = 0;  // where other lanes wait for the group
  u8* registers = nullptr;
  Lane lanes[warp_size];
  std::vector<Chunk> storage;

  void start(Block& owner, u32 number, u32 threads);
  /// Runs until it is done, at a barrier, or has had its turn.
  void run(u64& budget);
  /// Past the barrier at which it stands.
  void release();
  /// The instruction it stands at, for messages.
  Instruction const& current() const;

  // ---- operands ----
  template <class T>
  T const* in(Operand const& o) const {
    return reinterpret_cast<T const*>(o.lanes ? o.lanes : registers + o.at);
  }
  template <class T>
  void out(Operand const& o, Mask m, T const* from) {
    T* const to = reinterpret_cast<T*>(registers + o.at);
    if (m == all_lanes) {
      std::memcpy(to, from, sizeof(T) * warp_size);
    } else {
      for (u32 lane = 0; lane < warp_size; ++lane) to[lane] = m >> lane & 1 ? from[lane] : to[lane];
    }
  }
  Mask mask_at(u32 place) const {
    Mask m;
    std::memcpy(&m, registers + place, sizeof m);
    return m;
  }
  Mask mask_of(Operand const& o) const {
    return mask_at(o.at) ^ (o.negated ? all_lanes : Mask{0});
  }
  void out_mask(u32 place, Mask lanes_written, Mask value) {
    Mask const now = (mask_at(place) & ~lanes_written) | (value & lanes_written);
    std::memcpy(registers + place, &now, sizeof now);
  }
  /// Operands of any width and form, as 64 bits.
  void read(Operand const& o, u64 (&to)[warp_size]) const;
  /// Writes the low bits that the register holds.
  void write(Operand const& o, Mask m, u64 const (&from)[warp_size]);
  u64 special(Special which, u32 lane) const;
  /// The addresses an operand [base+offset] means, in its space.
  void addresses(Operand const& o, u64 (&to)[warp_size]) const;

 private:
  void set_pc(Mask m, u32 to);
  void regroup();
  void branch(Instruction const& i, Mask taken);
  void branch_table(Instruction const& i, Mask m);
  void meet(Instruction const& i, Mask arrived);
  void complete(u32 at, u32 frame);
  void perform(Instruction const& i, Mask m);
  Mask awaited_by(u32 lane) const;
  std::string waiting_text(u32 lane) const;
  [[noreturn]] void never_met();
  void call(Instruction const& i, Mask m);
  void leave(Mask m, bool exit);
  u32 frame_for(Function const& callee, u32 depth);
};

struct Block {
  Module const& module;
  Launch const& launch;
  Memory& memory;
  SharedMemory shared;
  std::vector<Warp> warps;
  Dim3 index;
  u32 threads = 0;
  u64 number = 0;
  std::vector<u32> shared_base;  // by function: where its shared variables begin
  u32 dynamic_base = 0;
  Counters counters;
  bool counting = false;
  std::vector<u8> params;

  Block(Module const&, Launch const&, Memory&, bool counting);
  void run();

 private:
  void barrier();
};

/// How many bytes of shared memory a kernel declares, with what it calls.
u32 static_shared_bytes(Module const&, Function const& kernel);

/// Runs a grid, block after block. Faults name the instruction and where it ran.
Counters run(Module const&, Launch const&, Memory&, bool counting);

}  // namespace ptx
