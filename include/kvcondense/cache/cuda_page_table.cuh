#pragma once

#include <algorithm>
#include <cstring>

#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/cache/cuda_groups.cuh>
#include <kvcondense/cache/cuda_pages.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense::cache {

/// What the host says of the pages of a column, where kernels read it: where heads begin in each part and in the runs; pages; runs of codes that
/// cannot move alone; and room for the runs of all slots, which a kernel lays.
class CudaPageTable {
 public:
  static constexpr int parts = 3;
  using Pages = ObjectArray<Buffer<CudaPage*>>;

  /// `groups`: whether there are codes that cannot move alone.
  CudaPageTable(index_t heads, bool groups, MemoryResource<Cuda>& memory) : heads_(heads), groups_(groups), table_(memory) {}

  bool empty() const { return table_.size() == 0; }
  std::size_t bytes() const { return static_cast<std::size_t>(table_.size()); }

  /// Room for so many pages and runs, so that `send` needs no memory; `grown` becomes true where the table is another one now.
  Status reserve(const Context<Cuda>& ctx, index_t entries, bool& grown) {
    const index_t before = room_;
    if (entries <= before) return Status::ok;
    room_ = std::max<index_t>(entries, 2 * before);
    const auto bytes = static_cast<index_t>(places().end);
    Status s = staging_.reserve(places().runs);
    if (s == Status::ok && before > 0) s = ctx.wait();  // somebody may still read the smaller one
    if (s == Status::ok) s = table_.resize(bytes);
    if (s != Status::ok) room_ = before;
    else grown = true;
    return s;
  }

  /// Pages of every part, and runs of the codes in `groups`, which may be null. Behind `reserve` of as many.
  Status send(const Context<Cuda>& ctx, const Pages (&pages)[parts], const CudaGroups* groups) {
    const Places p = places();
    std::span<std::byte> table;
    if (const Status s = staging_.next(table); s != Status::ok) return s;
    const auto put = [&](std::size_t byte, const auto& value) { std::memcpy(table.data() + byte, &value, sizeof value); };
    std::size_t slot = 0;
    const auto offset = [&](index_t value) { put(slot++ * sizeof(index_t), value); };
    index_t n = 0, runs = 0;
    for (int part = 0; part < parts; ++part) {
      const bool listed = part == 1 && groups != nullptr;
      for (index_t h = 0; h < heads_; ++h) {
        offset(listed ? runs : n);
        for (const CudaPage* page : pages[part][h]) put(p.pages + static_cast<std::size_t>(n++) * sizeof(std::byte*), page->rows);
        std::int32_t begin = 0;
        if (listed)
          groups->each_run(h, [&](const CudaPage* page, index_t place, index_t count) {
            put(p.coded_runs + static_cast<std::size_t>(runs++) * sizeof(prim::SlotRun), prim::SlotRun{page->at(), begin, static_cast<std::int32_t>(place), true});
            begin += static_cast<std::int32_t>(count);
          });
      }
      offset(listed ? runs : n);
    }
    n = 0;
    for (index_t h = 0; h < heads_; ++h) {
      offset(n);
      for (const Pages& part : pages) n += part[h].size();
      if (groups != nullptr) groups->each_run(h, [&](const CudaPage*, index_t, index_t) { ++n; });
    }
    offset(n);
    return staging_.send(ctx, table_.data(), p.runs);
  }

  // What kernels read.
  const index_t* offsets(int part) const { return at<index_t>(0) + part * (heads_ + 1); }
  std::byte* const* pages() const { return at<std::byte*>(places().pages); }
  const prim::SlotRun* coded_runs() const { return groups_ ? at<prim::SlotRun>(places().coded_runs) : nullptr; }
  prim::SlotRun* runs() const { return at<prim::SlotRun>(places().runs); }

 private:
  /// Bytes in the table.
  struct Places {
    std::size_t pages, coded_runs, runs, end;
  };
  Places places() const {
    const auto n = static_cast<std::size_t>(room_);
    Places p{};
    p.pages = static_cast<std::size_t>((parts + 1) * (heads_ + 1)) * sizeof(index_t);
    p.coded_runs = p.pages + n * sizeof(std::byte*);
    p.runs = p.coded_runs + (groups_ ? n : 0) * sizeof(prim::SlotRun);
    p.end = p.runs + n * sizeof(prim::SlotRun);
    return p;
  }
  static_assert(alignof(prim::SlotRun) <= alignof(std::byte*) && alignof(std::byte*) <= alignof(index_t));
  template <class T>
  T* at(std::size_t byte) const {
    return reinterpret_cast<T*>(const_cast<std::byte*>(table_.data()) + byte);
  }

  index_t heads_;
  bool groups_;
  cuda::Staging staging_;
  cuda::DeviceArray<std::byte> table_;
  index_t room_ = 0;  ///< pages, and runs, that there is room for
};

}  // namespace kvcondense::cache
