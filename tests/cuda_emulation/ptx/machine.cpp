// Blocks and grids.

#include "machine.hpp"

#include <algorithm>

namespace ptx {
namespace {

constexpr u64 turn = u64{1} << 16;  // instructions a warp runs before the next may

void reach(Function const& f, std::vector<bool>& seen) {
  if (seen[f.index]) return;
  seen[f.index] = true;
  for (Function const* const callee : f.callees) reach(*callee, seen);
}

u32 round_up(u32 n, u32 to) { return (n + to - 1) / to * to; }

u32 lay_out_shared(Module const& module, Function const& kernel, std::vector<u32>& base) {
  std::vector<bool> seen(module.functions.size());
  reach(kernel, seen);
  base.assign(module.functions.size(), 0);
  u32 top = module.shared_bytes;
  for (Function const& f : module.functions) {
    if (!seen[f.index] || f.shared_bytes == 0) continue;
    base[f.index] = round_up(top, 128);
    top = base[f.index] + f.shared_bytes;
  }
  return top;
}

}  // namespace

u32 static_shared_bytes(Module const& module, Function const& kernel) {
  std::vector<u32> base;
  return lay_out_shared(module, kernel, base);
}

Block::Block(Module const& m, Launch const& l, Memory& mem, bool count)
    : module(m), launch(l), memory(mem), counting(count), params(l.params) {
  threads = static_cast<u32>(l.block.count());
  u32 align = 16;
  for (auto const& [name, wanted] : m.dynamic_shared) align = std::max(align, wanted);
  u32 bytes = lay_out_shared(m, *l.kernel, shared_base);
  dynamic_base = round_up(bytes, align);
  if (l.dynamic_shared) bytes = dynamic_base + l.dynamic_shared;
  u32 const count_warps = (threads + warp_size - 1) / warp_size;
  shared.resize(bytes, count_warps);
  warps.resize(count_warps);
  params.resize(std::max<std::size_t>(l.kernel->param_bytes, params.size()));
}

void Block::run() {
  shared.reset();
  for (u32 w = 0; w < warps.size(); ++w) warps[w].start(*this, w, threads - w * warp_size);
  u64 const before = counters.warp_instructions;
  for (;;) {
    bool running = false, waiting = false;
    for (Warp& warp : warps) {
      try {
        u64 budget = turn;
        warp.run(budget);
      } catch (Fault const& fault) {
        Instruction const& at = warp.current();
        std::string where = "\n  at '" + at.text + "'";
        if (at.file < module.files.size() && at.line)
          where += " (" + module.files[at.file] + ":" + std::to_string(at.line) + ")";
        auto const triple = [](Dim3 d) {
          return std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z);
        };
        throw Fault(fault.what() + where + "\n  in " + launch.kernel->name + ", block " +
                    triple(index) + ", warp " + std::to_string(warp.index));
      }
      running |= warp.state == Warp::State::running;
      waiting |= warp.state == Warp::State::at_barrier;
    }
    if (!running && !waiting) return;
    if (!running) barrier();
    if (counters.warp_instructions - before > launch.block_limit)
      throw Fault("a block of " + launch.kernel->name +
                  " does not end: does it wait for a later block?");
  }
}

void Block::barrier() {
  Warp const* first = nullptr;
  bool any = false, all = true;
  u32 count = 0;
  for (Warp& warp : warps) {
    if (warp.state != Warp::State::at_barrier) continue;
    if (!first) first = &warp;
    if (warp.pc != first->pc)
      throw Fault("block barrier: warp " + std::to_string(first->index) + " waits at '" +
                  first->current().text + "' and warp " + std::to_string(warp.index) +
                  " at another, '" + warp.current().text + "'\n  in " + launch.kernel->name);
    Instruction const& at = warp.current();
    bool const reduces = at.mod.has("red");
    // bar.sync a, b; bar.red p, a, b, q
    if (at.o.size() == (reduces ? 4 : 2) && at.o[reduces ? 2 : 1].value != threads)
      throw Fault("block barrier of part of the block is not covered: '" + at.text + "'\n  in " +
                  launch.kernel->name);
    if (!reduces) continue;
    Mask const votes = warp.mask_of(at.o.back()) & warp.live;
    any |= votes != 0, all &= votes == warp.live;
    count += static_cast<u32>(__builtin_popcount(votes));
  }
  shared.block_barrier();
  for (Warp& warp : warps) {
    if (warp.state != Warp::State::at_barrier) continue;
    Instruction const& at = warp.current();
    if (at.mod.has("popc")) {
      u32 lanes[warp_size];
      std::fill_n(lanes, warp_size, count);
      warp.out(at.o[0], warp.live, lanes);
    } else if (at.mod.has("red")) {
      warp.out_mask(at.o[0].at, warp.live, (at.mod.combine == '&' ? all : any) ? all_lanes : 0);
    }
    warp.release();
  }
}

Counters run(Module const& module, Launch const& launch, Memory& memory, bool counting) {
  Block block(module, launch, memory, counting);
  for (u32 z = 0; z < launch.grid.z; ++z)
    for (u32 y = 0; y < launch.grid.y; ++y)
      for (u32 x = 0; x < launch.grid.x; ++x) {
        block.index = {x, y, z};
        block.run();
        ++block.number;
      }
  block.counters.launches = 1;
  return block.counters;
}

}  // namespace ptx
