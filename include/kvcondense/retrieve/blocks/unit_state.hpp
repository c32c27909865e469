#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::retrieve {

/// The index of one KV head: what a retrieval stage scores instead of keys.
///
/// The planes are a pure function of the stored keys and values of slots [0, covered), of `found` and of `drawn`: they are
/// neither saved nor moved with slots, but made anew from the first slot whose stored form changed.
struct UnitState {
  static constexpr int planes = 2;
  using Plane = Buffer<std::byte, 64>;  ///< rows of numbers or codes, in the order of units

  Plane plane[planes];  ///< per unit, `Summary::plane_bytes` bytes each
  Buffer<float> found;              ///< what a fit found when a prompt ended; saved, shared by nobody
  Buffer<float> drawn;              ///< `width` numbers per slot that a step has seen, see Watch; saved, moves with slots
  index_t width = 0;                ///< see Watch::numbers
  index_t covered = 0;              ///< slots that the planes know

  UnitState() = default;
  explicit UnitState(MemoryResource<Cpu>& memory) : found(memory), drawn(memory) {
    for (auto& p : plane) p = Plane(memory);
  }

  std::size_t bytes() const { return plane[0].bytes() + plane[1].bytes() + found.bytes() + drawn.bytes(); }

  Status fork(UnitState& out) const {
    out.covered = covered;
    Status s = out.found.copy_from(found);
    if (s == Status::ok) s = out.drawn.copy_from(drawn);
    for (int p = 0; s == Status::ok && p < planes; ++p) s = out.plane[p].copy_from(plane[p]);
    return s;
  }
  void clear() {
    for (auto& p : plane) p.shrink(0);
    found.shrink(0), drawn.shrink(0);
    covered = 0;
  }
  /// What is drawn stays with the slots that stay: some, ascending, or the first ones.
  /// Kept: see cache/kept.hpp.
  template <class Kept>
  void keep(const Kept& kept) {
    kept.for_runs([&](index_t to, index_t from, index_t n) {
      if (to != from) std::copy_n(drawn.data() + from * width, n * width, drawn.data() + to * width);
    });
    drawn.shrink(kept.size() * width);
  }
  void keep_first(index_t slots) { drawn.shrink(std::min(drawn.size(), slots * width)); }
};

/// Units that a schedule goes on reading in later steps, per row of selection in the order of their scores or of
/// slots, as the pipeline says. Set by a step, read by `attend`.
struct HeldUnits {
  Buffer<std::int32_t> units;
  Buffer<index_t> offset;  ///< rows + 1
  Buffer<index_t> slots;   ///< per KV head: how many there were, then how many of them an index knew
  index_t made = -1;       ///< logical length when they were chosen; -1: none are held

  HeldUnits() = default;
  explicit HeldUnits(MemoryResource<Cpu>& memory) : units(memory), offset(memory), slots(memory) {}

  bool valid() const { return made >= 0; }
  void drop() { made = -1; }
  std::size_t bytes() const { return units.bytes() + offset.bytes() + slots.bytes(); }
  Status fork(HeldUnits& out) const {
    out.made = made;
    Status s = out.units.copy_from(units);
    if (s == Status::ok) s = out.offset.copy_from(offset);
    return s == Status::ok ? out.slots.copy_from(slots) : s;
  }
};

}  // namespace kvcondense::retrieve
