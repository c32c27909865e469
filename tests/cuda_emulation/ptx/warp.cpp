// How the lanes of a warp move through the code.

#include <algorithm>
#include <bit>

#include "machine.hpp"

namespace ptx {
namespace {

constexpr u32 nowhere = ~u32{0};

template <class F>
void for_lanes(Mask m, F f) {
  for (; m; m &= m - 1) f(static_cast<u32>(std::countr_zero(m)));
}

std::string lanes_text(Mask m) {
  std::string out;
  for (u32 lane = 0; lane < warp_size; ++lane) {
    if (!(m >> lane & 1)) continue;
    u32 last = lane;
    while (last + 1 < warp_size && (m >> (last + 1) & 1)) ++last;
    out += (out.empty() ? "" : ",") + std::to_string(lane);
    if (last > lane) out += "-" + std::to_string(last);
    lane = last;
  }
  return out.empty() ? "none" : out;
}

}  // namespace

void Warp::start(Block& owner, u32 number, u32 threads) {
  block = &owner, index = number;
  state = State::running;
  live = threads >= warp_size ? all_lanes : (Mask{1} << threads) - 1;
  parked = 0;
  Function const& kernel = *owner.launch.kernel;
  storage.resize((kernel.register_bytes + 63) / 64 + 1);
  std::fill_n(reinterpret_cast<u32*>(storage.data()), storage.size() * 16, 0xdeadbeefU);
  for (Lane& lane : lanes) {
    lane.pc = kernel.start, lane.frame = 0, lane.local = 0, lane.function = &kernel;
    lane.calls.clear(), lane.copies.clear();
    lane.copy_group = 0;
    lane.stack.reserve(kernel.frame_bytes + 16);
    lane.stack.assign(kernel.frame_bytes, u8{0xff});
  }
  regroup();
}

Instruction const& Warp::current() const { return block->module.code[pc]; }

void Warp::set_pc(Mask m, u32 to) {
  for_lanes(m, [&](u32 lane) { lanes[lane].pc = to; });
}

void Warp::regroup() {
  Mask const ready = live & ~parked;
  if (!ready) {
    if (parked) never_met();
    state = State::done;
    return;
  }
  u32 best = nowhere;
  for_lanes(ready, [&](u32 l) {
    if (best == nowhere || lanes[l].calls.size() > lanes[best].calls.size() ||
        (lanes[l].calls.size() == lanes[best].calls.size() && lanes[l].pc < lanes[best].pc))
      best = l;
  });
  Lane const& first = lanes[best];
  group = 0, until = nowhere, pc = first.pc;
  for_lanes(ready, [&](u32 l) {
    if (lanes[l].pc == pc && lanes[l].frame == first.frame)
      group |= Mask{1} << l;
    else if (lanes[l].calls.size() == first.calls.size())
      until = std::min(until, std::max(lanes[l].pc, pc + 1));
  });
  registers = storage[0].bytes + first.frame;
}

void Warp::run(u64& budget) {
  Instruction const* const code = block->module.code.data();
  while (state == State::running && budget) {
    if (pc >= until) {
      set_pc(group, pc);
      regroup();
    }
    Instruction const& i = code[pc];
    --budget, ++i.executed, ++block->counters.warp_instructions;
    Mask m = group;
    if (i.guarded) m &= mask_at(i.guard) ^ (i.guard_negated ? all_lanes : Mask{0});
    if (m == 0) {
      ++pc;
      continue;
    }
    switch (i.flow) {
      case Flow::next:
        if (i.together != Together::none) {
          meet(i, m);
        } else {
          i.run(*this, i, m);
          ++pc;
        }
        break;
      case Flow::block_barrier: meet(i, m); break;
      case Flow::branch: branch(i, m); break;
      case Flow::branch_table: branch_table(i, m); break;
      case Flow::call: call(i, m); break;
      case Flow::ret: leave(m, false); break;
      case Flow::exit: leave(m, true); break;
      case Flow::not_covered:
        throw Fault(i.text.find("__assertfail") != i.text.npos
                        ? "an assertion of the kernel failed"
                        : "instruction not covered");
    }
  }
}

void Warp::branch(Instruction const& i, Mask taken) {
  if (taken == group) {
    pc = i.target;
    return;
  }
  set_pc(group & ~taken, pc + 1);
  set_pc(taken, i.target);
  regroup();
}

void Warp::branch_table(Instruction const& i, Mask m) {
  u32 const* const which = in<u32>(i.o[0]);
  set_pc(group & ~m, pc + 1);
  for_lanes(m, [&](u32 l) {
    if (which[l] >= i.targets.size()) throw Fault("brx.idx beyond its table");
    lanes[l].pc = i.targets[which[l]];
  });
  regroup();
}

// ---- instructions that lanes run together ----

void Warp::meet(Instruction const& i, Mask arrived) {
  bool all_here = arrived == live;
  if (i.together == Together::masked) {
    u32 const* const masks = in<u32>(i.o[i.mask_operand]);
    u32 const mask = masks[std::countr_zero(arrived)];
    all_here = (mask & live) == arrived;
    for_lanes(arrived, [&](u32 l) { all_here &= masks[l] == mask; });
    all_here &= (arrived & ~mask) == 0;
  }
  if (all_here && (i.flow != Flow::block_barrier || arrived == group)) {
    u32 const after = pc + 1;
    perform(i, arrived);
    if (state == State::running) pc = after;
    return;
  }
  set_pc(group & ~arrived, pc + 1);
  set_pc(arrived, pc);
  parked |= arrived;
  complete(pc, lanes[std::countr_zero(arrived)].frame);
  if (state == State::running) regroup();
}

/// Lets those parked at `at` go on whose whole company is there.
void Warp::complete(u32 at, u32 frame) {
  Instruction const& i = block->module.code[at];
  Mask here = 0;
  for_lanes(parked, [&](u32 l) {
    if (lanes[l].pc == at && lanes[l].frame == frame) here |= Mask{1} << l;
  });
  registers = storage[0].bytes + frame;
  while (here) {
    u32 const first = static_cast<u32>(std::countr_zero(here));
    Mask wanted = live, company = here;
    if (i.together == Together::masked) {
      u32 const* const masks = in<u32>(i.o[i.mask_operand]);
      wanted = masks[first] & live;
      company = 0;
      for_lanes(here, [&](u32 l) { company |= Mask{masks[l] == masks[first]} << l; });
      if (company & ~masks[first])
        throw Fault("warp operation by lanes " + lanes_text(company) +
                    ", whose mask names only lanes " + lanes_text(masks[first]));
    }
    here &= ~company;
    if (company != wanted) continue;
    parked &= ~company;
    group = company;
    perform(i, company);
    if (state == State::running) set_pc(company, at + 1);
  }
}

void Warp::perform(Instruction const& i, Mask m) {
  if (i.flow == Flow::block_barrier) {
    set_pc(m, pc);
    state = State::at_barrier;
  } else {
    i.run(*this, i, m);
  }
}

/// The lanes that a parked lane waits for.
Mask Warp::awaited_by(u32 l) const {
  Instruction const& at = block->module.code[lanes[l].pc];
  if (at.together != Together::masked) return live;
  Operand const& o = at.o[at.mask_operand];
  void const* const masks = o.lanes ? o.lanes : storage[0].bytes + lanes[l].frame + o.at;
  return static_cast<u32 const*>(masks)[l] & live;
}

std::string Warp::waiting_text(u32 l) const {
  Instruction const& at = block->module.code[lanes[l].pc];
  Mask here = 0;
  for_lanes(parked, [&](u32 k) { here |= Mask{lanes[k].pc == lanes[l].pc} << k; });
  return std::string(at.flow == Flow::block_barrier ? "block barrier" : "warp operation") +
         " reached by lanes " + lanes_text(here) + " of " + lanes_text(awaited_by(l));
}

void Warp::never_met() {
  u32 const first = static_cast<u32>(std::countr_zero(parked));
  pc = lanes[first].pc;
  std::string text = waiting_text(first);
  for_lanes(parked, [&](u32 l) {
    if (lanes[l].pc == pc || text.find(';') != text.npos) return;
    text += "; lane " + std::to_string(l) + " waits at '" + block->module.code[lanes[l].pc].text + "'";
  });
  throw Fault(text);
}

void Warp::release() {
  set_pc(live, pc + 1);
  state = State::running;
  regroup();
}

// ---- calls ----

u32 Warp::frame_for(Function const& callee, u32 depth) {
  u32 top = 0;
  for (u32 l = 0; l < warp_size; ++l) {
    if (!(live >> l & 1)) continue;
    // Lanes of one function at one depth share its frame, so that they can meet.
    if (lanes[l].function == &callee && lanes[l].calls.size() == depth) return lanes[l].frame;
    top = std::max(top, lanes[l].frame + lanes[l].function->register_bytes);
  }
  top = (top + 63) / 64 * 64;
  std::size_t const chunks = (top + callee.register_bytes + 63) / 64 + 1;
  if (storage.size() < chunks) storage.resize(chunks);
  std::fill_n(reinterpret_cast<u32*>(storage[top / 64].bytes), callee.register_bytes / 4, 0xdeadbeefU);
  return top;
}

void Warp::call(Instruction const& i, Mask m) {
  Function const& callee = *i.callee;
  auto const name = std::find_if(i.o.begin(), i.o.end(), [](Operand const& o) {
    return o.form == Operand::Form::name;
  });
  std::vector<Operand> const none;
  auto const& arguments = name + 1 == i.o.end() ? none : (name + 1)->parts;
  if (arguments.size() != callee.params.size()) throw Fault("a call with other parameters");
  u32 const depth = static_cast<u32>(lanes[std::countr_zero(m)].calls.size()) + 1;
  if (depth > 1024) throw Fault("calls nested more than 1024 deep");
  u32 const frame = frame_for(callee, depth);
  set_pc(group & ~m, pc + 1);
  for_lanes(m, [&](u32 l) {
    Lane& lane = lanes[l];
    lane.calls.push_back({pc + 1, lane.frame, lane.local, lane.function, &i});
    u32 const local = (static_cast<u32>(lane.stack.size()) + 15) / 16 * 16;
    lane.stack.reserve(local + callee.frame_bytes + 16);  // a widened load may reach beyond
    lane.stack.resize(local + callee.frame_bytes, u8{0xff});
    for (std::size_t k = 0; k < arguments.size(); ++k) {
      if (arguments[k].form != Operand::Form::frame_name) throw Fault("a call with such an argument");
      std::copy_n(lane.stack.data() + lane.local + arguments[k].value,
                  std::min(callee.params[k].bytes, arguments[k].bytes),
                  lane.stack.data() + local + callee.params[k].offset);
    }
    lane.local = local, lane.frame = frame, lane.function = &callee, lane.pc = callee.start;
  });
  regroup();
}

void Warp::leave(Mask m, bool exit) {
  set_pc(group & ~m, pc + 1);
  for_lanes(m, [&](u32 l) {
    Lane& lane = lanes[l];
    if (exit || lane.calls.empty()) {
      if (!lane.copies.empty())
        throw Fault("lane " + std::to_string(l) + " exits with cp.async copies in flight");
      for_lanes(parked, [&](u32 k) {
        if (awaited_by(k) >> l & 1)
          throw Fault("lane " + std::to_string(l) + " exits while others wait for it: " +
                      waiting_text(k) + " at '" + block->module.code[lanes[k].pc].text + "'");
      });
      live &= ~(Mask{1} << l);
      return;
    }
    Warp::Call const back = lane.calls.back();
    lane.calls.pop_back();
    if (!lane.function->results.empty())
      std::copy_n(lane.stack.data() + lane.local + lane.function->results[0].offset,
                  lane.function->results[0].bytes,
                  lane.stack.data() + back.local + back.at->o[0].parts.at(0).value);
    lane.stack.resize(back.local + back.function->frame_bytes);
    lane.pc = back.return_pc, lane.frame = back.frame, lane.local = back.local;
    lane.function = back.function;
  });
  regroup();
}

}  // namespace ptx
