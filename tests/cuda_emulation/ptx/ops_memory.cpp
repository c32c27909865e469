// ld and st in every space.

#include <bit>

#include "access.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

bool writes(Access how) { return how != Access::read && how != Access::strong_read; }

[[noreturn]] void bad_access(Warp& w, char const* space, char const* what, u64 address, u32 bytes,
                             u32 lane, Access how) {
  std::string const where = space == std::string("global") ? w.block->memory.describe(address)
                                                            : "byte " + std::to_string(address);
  throw Fault(std::string(what) + " " + space + (writes(how) ? " write" : " read") + " of " +
              std::to_string(bytes) + " bytes by lane " + std::to_string(lane) + ": " + where);
}

template <class T>
void load_part(Warp& w, Operand const& to, Mask m, u8* const (&from)[warp_size], u32 offset) {
  T x[warp_size] = {};
  for (u32 l = 0; l < warp_size; ++l)
    if (m >> l & 1) std::memcpy(&x[l], from[l] + offset, sizeof(T));
  if (to.form == Operand::Form::reg && to.width == 8 * sizeof(T)) {
    w.out(to, m, x);
  } else {
    u64 wide[warp_size];
    for (u32 l = 0; l < warp_size; ++l) wide[l] = static_cast<u64>(static_cast<i64>(x[l]));
    w.write(to, m, wide);
  }
}

void load(Warp& w, Instruction const& i, Mask m) {
  Type const type = i.mod.types[0];
  u32 const bytes = type.bytes();
  u8* from[warp_size];
  locate_all(w, i, i.o[1], m, bytes * i.mod.vector, i.mod.strong ? Access::strong_read : Access::read, from);
  for (u32 v = 0; v < i.mod.vector; ++v) {
    Operand const& to = i.mod.vector > 1 ? i.o[0].parts.at(v) : i.o[0];
    bool const is_signed = type.is_signed();
    switch (bytes) {
      case 1: is_signed ? load_part<i8>(w, to, m, from, v) : load_part<u8>(w, to, m, from, v); break;
      case 2: is_signed ? load_part<i16>(w, to, m, from, v * 2) : load_part<u16>(w, to, m, from, v * 2); break;
      case 4: is_signed ? load_part<i32>(w, to, m, from, v * 4) : load_part<u32>(w, to, m, from, v * 4); break;
      default: load_part<u64>(w, to, m, from, v * 8);
    }
  }
}

void store(Warp& w, Instruction const& i, Mask m) {
  u32 const bytes = i.mod.types[0].bytes();
  u8* to[warp_size];
  locate_all(w, i, i.o[0], m, bytes * i.mod.vector, i.mod.strong ? Access::strong_write : Access::write, to);
  for (u32 v = 0; v < i.mod.vector; ++v) {
    u64 x[warp_size];
    w.read(i.mod.vector > 1 ? i.o[1].parts.at(v) : i.o[1], x);
    for (Mask rest = m; rest; rest &= rest - 1) {
      u32 const l = static_cast<u32>(std::countr_zero(rest));
      std::memcpy(to[l] + v * bytes, &x[l], bytes);
    }
  }
}

void nothing(Warp&, Instruction const&, Mask) {}

}  // namespace

Space resolve(Space named, u64& address) {
  if (named == Space::generic) {
    for (auto const& [space, window] : {std::pair{Space::shared, shared_window},
                                        {Space::local, local_window},
                                        {Space::param, param_window}}) {
      if (!in_window(address, window)) continue;
      address -= window;
      return space;
    }
    return Space::global;
  }
  if (named == Space::param) {
    // Of a kernel, or in the frame of a call.
    if (!in_window(address, param_window)) return Space::local;
    address -= param_window;
  }
  if (named == Space::shared) address &= 0xffffffffU;
  return named == Space::constant ? Space::global : named;
}

u8* locate(Warp& w, Space space, u64 address, u32 bytes, u32 lane, Access how, u32 used) {
  if (space == Space::shared) return w.block->shared.access(address, bytes, w.index, lane, how, used);
  // Outside shared memory the first and the last byte wanted tell all.
  u32 const wanted = bytes < 32 ? used & ((1U << bytes) - 1) : used;
  u32 const first = wanted ? static_cast<u32>(std::countr_zero(wanted)) : 0;
  u32 const count = wanted ? 32U - static_cast<u32>(std::countl_zero(wanted)) - first : 0;
  u64 const from = address + first;
  auto const within = [&](std::vector<u8>& in, char const* name) {
    if (address % bytes) bad_access(w, name, "misaligned", address, bytes, lane, how);
    if (from + count > in.size() || from + count < from)
      bad_access(w, name, "out of bounds:", from, count, lane, how);
    return in.data() + address;
  };
  if (space == Space::local) return within(w.lanes[lane].stack, "local");
  if (space == Space::param) {
    if (writes(how)) bad_access(w, "parameter", "forbidden", address, bytes, lane, how);
    return within(w.block->params, "parameter");
  }
  if (address % bytes) bad_access(w, "global", "misaligned", address, bytes, lane, how);
  u8* const at = w.block->memory.at(from, count);
  if (!at) bad_access(w, "global", "out of bounds:", from, count, lane, how);
  if (writes(how) && w.block->memory.find(from)->use == Memory::Use::constant)
    bad_access(w, "global", "forbidden (constant memory)", address, bytes, lane, how);
  return at - first;
}

void count(Warp& w, Instruction const& i, Space space, u64 const (&address)[warp_size], Mask lanes,
           u32 bytes) {
  if (!w.block->counting) return;
  if (space == Space::shared) count_shared(w.block->counters, i, address, lanes, bytes);
  if (space == Space::global) count_global(w.block->counters, address, lanes, bytes);
}

void locate_all(Warp& w, Instruction const& i, Operand const& address, Mask m, u32 bytes, Access how,
                u8* (&to)[warp_size]) {
  u64 a[warp_size];
  w.addresses(address, a);
  Space space{};
  for (Mask rest = m; rest; rest &= rest - 1) {
    u32 const l = static_cast<u32>(std::countr_zero(rest));
    space = resolve(i.mod.space, a[l]);
    to[l] = locate(w, space, a[l], bytes, l, how, i.used_bytes);
  }
  count(w, i, space, a, m, bytes);
}

void define_memory(Opcodes& all) {
  std::string const space = "{,.global,.shared,.shared::cta,.local,.param,.const}",
                    levels = "{,.L1::evict_normal,.L1::evict_unchanged,.L1::evict_first,"
                             ".L1::evict_last,.L1::no_allocate}{,.L2::64B,.L2::128B,.L2::256B}",
                    type = "{,.v2,.v4}.{b8,u8,s8,b16,u16,s16,b32,u32,s32,f32,b64,u64,s64,f64}";
  all.add("ld{,.weak,.volatile,.relaxed.{cta,gpu,sys},.acquire.{cta,gpu,sys}}" + space +
              "{,.ca,.cg,.cs,.lu,.cv}{,.nc}" + levels + type, "x=a", load);
  all.add("st{,.weak,.volatile,.relaxed.{cta,gpu,sys},.release.{cta,gpu,sys}}" + space +
              "{,.wb,.cg,.cs,.wt}" + levels + type, "ax", store);
  all.add("prefetch{,.global}.{L1,L2}", "a", nothing);
}

}  // namespace ptx
