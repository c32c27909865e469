#pragma once

#include <algorithm>
#include <cstring>
#include <span>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::storage {

/// A page that goes from one place to another, both counted in pages.
struct PageMove {
  index_t from = 0;
  index_t to = 0;
};

/// Neighbouring pages that move together.
struct PageRun {
  index_t from = 0;
  index_t to = 0;
  index_t pages = 0;
};

/// A link between two memories.
struct Link {
  double bytes_per_second = 1.0;
  double launch_seconds = 0.0;  ///< of one copy, however small

  double seconds(double bytes, double copies) const { return copies * launch_seconds + bytes / bytes_per_second; }
};

/// Moves a sequence's pages between two memories in as few copies as their places allow.
///
/// Idea     a copy of one page costs its start, not its bytes; pages that are neighbours in both memories move
///          in one. What the other side still has from an earlier turn does not move at all.
/// Source   FastSwitch, arXiv:2411.18424, its block groups and its copies across turns.
/// Needs    which pages move where; for `stale`, a version per page that rises with every write.
/// Shapes   one move per page.
/// Cost     a sort of the moves, then one pass.
/// Numbers  bytes move as they are.
/// Differs  the authors also allocate pages in runs: `RowPool::take_run` does that.
/// Errors   out_of_range: a place below 0 or beyond its memory; invalid_argument: two moves to one place, or a
///          run limit below 1; out_of_memory. The plan is then as it was.
class SwapPlan {
 public:
  static constexpr Descriptor about{"swap_plan", Stage::storage, "arXiv:2411.18424"};

  explicit SwapPlan(MemoryResource<Cpu>& memory = heap_memory()) : runs_(memory), moves_(memory) {}

  /// Plans `moves` between memories of `from_pages` and `to_pages`; no run is longer than `most`.
  Status plan(std::span<const PageMove> moves, index_t from_pages, index_t to_pages, index_t most = 64) {
    if (most < 1) return Status::invalid_argument;
    const auto n = static_cast<index_t>(moves.size());
    for (const PageMove& m : moves)
      if (m.from < 0 || m.from >= from_pages || m.to < 0 || m.to >= to_pages) return Status::out_of_range;
    moves_.shrink(0);
    if (const Status s = moves_.reserve(n); s != Status::ok) return s;
    if (const Status s = runs_.reserve(n); s != Status::ok) return s;
    for (const PageMove& m : moves) moves_.append_reserved(m);
    std::sort(moves_.begin(), moves_.end(), [](const PageMove& a, const PageMove& b) { return a.to < b.to; });
    for (index_t i = 1; i < n; ++i)
      if (moves_[i].to == moves_[i - 1].to) return Status::invalid_argument;
    runs_.shrink(0);
    for (const PageMove& m : moves_) {
      const bool joins = !runs_.empty() && m.from == runs_.back().from + runs_.back().pages &&
                         m.to == runs_.back().to + runs_.back().pages && runs_.back().pages < most;
      if (joins) ++runs_.back().pages;
      else runs_.append_reserved({m.from, m.to, 1});
    }
    return Status::ok;
  }

  std::span<const PageRun> runs() const { return runs_.span(); }
  index_t copies() const { return runs_.size(); }
  index_t pages() const {
    index_t n = 0;
    for (const PageRun& r : runs_) n += r.pages;
    return n;
  }
  double seconds(const Link& link, double page_bytes) const {
    return link.seconds(page_bytes * static_cast<double>(pages()), static_cast<double>(copies()));
  }

  /// Calls copy(to byte, from byte, bytes) once per run, offsets in each memory.
  template <class Copy>
  void each(std::size_t page_bytes, Copy&& copy) const {
    const auto bytes = [&](index_t p) { return static_cast<std::size_t>(p) * page_bytes; };
    for (const PageRun& r : runs_) copy(bytes(r.to), bytes(r.from), bytes(r.pages));
  }
  /// The same between two memories of the host; they may not overlap.
  void run(std::byte* to, const std::byte* from, std::size_t page_bytes) const {
    each(page_bytes, [&](std::size_t t, std::size_t f, std::size_t n) { std::memcpy(to + t, from + f, n); });
  }

 private:
  Buffer<PageRun> runs_;
  Buffer<PageMove> moves_;
};

/// Copies that moving `bytes` in pieces of `piece` takes.
constexpr double copies_of(double bytes, double piece) {
  const auto whole = static_cast<std::int64_t>(bytes / piece);
  return static_cast<double>(whole) + (static_cast<double>(whole) * piece < bytes ? 1.0 : 0.0);
}

/// Pages whose version is newer than that of the copy on the other side, in order. `saved` may be shorter: what
/// it does not know was never copied.
inline Status stale_pages(std::span<const std::uint64_t> version, std::span<const std::uint64_t> saved, Buffer<index_t>& out) {
  const index_t before = out.size();
  for (std::size_t i = 0; i < version.size(); ++i) {
    if (i < saved.size() && saved[i] >= version[i]) continue;
    if (const Status s = out.push_back(static_cast<index_t>(i)); s != Status::ok) return out.shrink(before), s;
  }
  return Status::ok;
}

}  // namespace kvcondense::storage
