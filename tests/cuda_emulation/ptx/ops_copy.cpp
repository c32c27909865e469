// cp.async. A copy lands only where a wait makes it: until then its bytes may not be touched.

#include <bit>

#include "access.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

void issue(Warp& w, Instruction const& i, Mask m) {
  u64 to[warp_size], from[warp_size], wanted[warp_size];
  w.addresses(i.o[0], to);
  w.addresses(i.o[1], from);
  u32 const bytes = static_cast<u32>(i.o[2].value);
  if (bytes != 16 && (i.mod.has("cg") || (bytes != 4 && bytes != 8)))
    throw Fault("cp.async of " + std::to_string(bytes) + " bytes");
  if (i.o.size() > 3) w.read(i.o[3], wanted);
  Mask reads = 0;
  for (Mask rest = m; rest; rest &= rest - 1) {
    u32 const l = static_cast<u32>(std::countr_zero(rest));
    to[l] &= 0xffffffffU;
    locate(w, Space::shared, to[l], bytes, l, Access::copy_issue);
    Copy copy{static_cast<u32>(to[l]), bytes, w.lanes[l].copy_group, {}};
    u32 const size = i.o.size() > 3 ? static_cast<u32>(wanted[l]) : bytes;
    if (size > bytes) throw Fault("cp.async reads more than it copies, lane " + std::to_string(l));
    if (from[l] % bytes) throw Fault("misaligned source of cp.async, lane " + std::to_string(l));
    if (size) {
      u8 const* const source = w.block->memory.at(from[l], size);
      if (!source)
        throw Fault("out of bounds: source of cp.async of lane " + std::to_string(l) + ": " +
                    w.block->memory.describe(from[l]));
      std::memcpy(copy.data, source, size);
      reads |= Mask{1} << l;
    }
    w.lanes[l].copies.push_back(copy);
  }
  count(w, i, Space::shared, to, m, bytes);
  if (reads) count(w, i, Space::global, from, reads, bytes);
}

void land(Warp& w, u32 l, u32 but) {
  Warp::Lane& lane = w.lanes[l];
  std::size_t done = 0;
  for (; done < lane.copies.size(); ++done) {
    Copy const& copy = lane.copies[done];
    if (copy.group + but >= lane.copy_group) break;
    std::memcpy(w.block->shared.access(copy.to, copy.bytes, w.index, l, Access::copy_land), copy.data,
                copy.bytes);
  }
  lane.copies.erase(lane.copies.begin(), lane.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

template <class F>
void each(Mask m, F f) {
  for (; m; m &= m - 1) f(static_cast<u32>(std::countr_zero(m)));
}

}  // namespace

void define_copy(Opcodes& all) {
  std::string const form = "cp.async.{ca,cg}.shared{,::cta}.global{,.L2::64B,.L2::128B,.L2::256B}";
  all.add(form, "aai", issue);
  all.add(form, "aair", issue);
  all.add("cp.async.commit_group", "", [](Warp& w, Instruction const&, Mask m) {
    each(m, [&](u32 l) { ++w.lanes[l].copy_group; });
  });
  all.add("cp.async.wait_group", "i", [](Warp& w, Instruction const& i, Mask m) {
    each(m, [&](u32 l) { land(w, l, static_cast<u32>(i.o[0].value)); });
  });
  all.add("cp.async.wait_all", "", [](Warp& w, Instruction const&, Mask m) {
    each(m, [&](u32 l) {
      ++w.lanes[l].copy_group;
      land(w, l, 0);
    });
  });
}

}  // namespace ptx
