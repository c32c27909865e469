// Blocks, grids, and the operands that are not plain registers.

#include "machine.hpp"

#include <algorithm>

namespace ptx {
namespace {

constexpr u64 turn = u64{1} << 16;           // instructions a warp runs before the next may
constexpr u64 block_limit = 500'000'000;     // no test needs so many

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

// ---- operands ----

u64 Warp::special(Special which, u32 lane) const {
  Dim3 const threads = block->launch.block, grid = block->launch.grid;
  u32 const thread = index * warp_size + lane;
  Mask const own = Mask{1} << lane;
  u64 const clock = block->counters.warp_instructions;
  switch (which) {
    case Special::tid_x: return thread % threads.x;
    case Special::tid_y: return thread / threads.x % threads.y;
    case Special::tid_z: return thread / threads.x / threads.y;
    case Special::ntid_x: return threads.x;
    case Special::ntid_y: return threads.y;
    case Special::ntid_z: return threads.z;
    case Special::ctaid_x: return block->index.x;
    case Special::ctaid_y: return block->index.y;
    case Special::ctaid_z: return block->index.z;
    case Special::nctaid_x: return grid.x;
    case Special::nctaid_y: return grid.y;
    case Special::nctaid_z: return grid.z;
    case Special::laneid: return lane;
    case Special::warpid: return index;
    case Special::nwarpid: return block->warps.size();
    case Special::smid: return block->number % 4;
    case Special::nsmid: return 4;
    case Special::gridid: return 1;
    case Special::lanemask_eq: return own;
    case Special::lanemask_lt: return own - 1;
    case Special::lanemask_le: return own | (own - 1);
    case Special::lanemask_gt: return static_cast<Mask>(~(own | (own - 1)));
    case Special::lanemask_ge: return static_cast<Mask>(~(own - 1));
    case Special::clock: return static_cast<u32>(clock);
    case Special::clock64:
    case Special::globaltimer: return clock;
    case Special::dynamic_smem_size: return block->launch.dynamic_shared;
    case Special::total_smem_size: return block->shared.size();
  }
  return 0;
}

void Warp::read(Operand const& o, u64 (&to)[warp_size]) const {
  using Form = Operand::Form;
  auto const fill = [&](u64 value) { std::fill_n(to, warp_size, value); };
  switch (o.form) {
    case Form::immediate: return fill(o.value);
    case Form::reg:
      if (o.width == 64) {
        std::memcpy(to, in<u64>(o), sizeof to);
      } else if (o.width == 32) {
        u32 const* const from = in<u32>(o);
        for (u32 l = 0; l < warp_size; ++l) to[l] = from[l];
      } else if (o.width == 16) {
        u16 const* const from = in<u16>(o);
        for (u32 l = 0; l < warp_size; ++l) to[l] = from[l];
      } else {
        for (u32 l = 0; l < warp_size; ++l) to[l] = mask_of(o) >> l & 1;
      }
      return;
    case Form::special:
      for (u32 l = 0; l < warp_size; ++l) to[l] = special(o.special, l);
      return;
    case Form::param_name: return fill(param_window + o.value);
    case Form::frame_name:
      for (u32 l = 0; l < warp_size; ++l) to[l] = lanes[l].local + o.value;
      return;
    case Form::shared_name: return fill((o.function ? block->shared_base[o.function->index] : 0) + o.value);
    case Form::dynamic_name: return fill(block->dynamic_base + o.value);
    default: throw Fault("an operand of this form is not covered");
  }
}

void Warp::write(Operand const& o, Mask m, u64 const (&from)[warp_size]) {
  if (o.form == Operand::Form::none) return;
  if (o.form != Operand::Form::reg) throw Fault("a result of this form is not covered");
  if (o.width == 64) return out(o, m, from);
  if (o.width == 32) {
    u32 low[warp_size];
    for (u32 l = 0; l < warp_size; ++l) low[l] = static_cast<u32>(from[l]);
    return out(o, m, low);
  }
  if (o.width == 16) {
    u16 low[warp_size];
    for (u32 l = 0; l < warp_size; ++l) low[l] = static_cast<u16>(from[l]);
    return out(o, m, low);
  }
  Mask value = 0;
  for (u32 l = 0; l < warp_size; ++l) value |= Mask{(from[l] & 1) != 0} << l;
  out_mask(o.at, m, value);
}

void Warp::addresses(Operand const& o, u64 (&to)[warp_size]) const {
  read(o.parts[0], to);
  for (u64& a : to) a += o.value;
}

// ---- blocks ----

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
    if (counters.warp_instructions - before > block_limit)
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
    if (!at.mod.has("red")) continue;
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
