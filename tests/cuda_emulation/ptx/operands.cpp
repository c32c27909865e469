// Operands that are not plain registers.

#include <algorithm>

#include "machine.hpp"

namespace ptx {

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

}  // namespace ptx
