#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/cache/counters.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/prim/keep_rows.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense::cache {

/// What every layer of a cache on the device has in common.
struct CudaPlan {
  CacheShape shape{};
  index_t lanes = 0;

  prim::ExactRows codec() const { return {shape.dtype}; }
  /// A page has the keys of its slots, then their values.
  std::size_t key_bytes() const { return (codec().page_bytes(shape.page_slots, shape.head_dim) + 15) / 16 * 16; }
  std::size_t page_bytes() const { return key_bytes() + codec().page_bytes(shape.page_slots, shape.values()); }
  index_t pages_for(index_t slots) const { return (slots + shape.page_slots - 1) / shape.page_slots; }
};

/// Numbers of one kind per slot of all heads, with room to grow.
template <class T>
class SlotStore {
 public:
  explicit SlotStore(MemoryResource<Cuda>& memory) : data_(memory), memory_(&memory) {}

  prim::HeadNumbers<T> view() { return {data_.data(), room_}; }
  prim::HeadNumbers<const T> view() const { return {data_.data(), room_}; }
  std::size_t bytes() const { return static_cast<std::size_t>(data_.size()) * sizeof(T); }

  /// Room for `slots` of each head, of which `old(head)` are there. The stream is waited for where memory changes.
  template <class Old>
  Status reserve(const Context<Cuda>& ctx, index_t heads, index_t slots, Old&& old) {
    if (slots <= room_) return Status::ok;
    const index_t room = std::max<index_t>({slots, 2 * room_, 64});
    cuda::DeviceArray<T> more(*memory_);
    if (const Status s = more.resize(heads * room); s != Status::ok) return s;
    for (index_t h = 0; h < heads && room_ > 0; ++h) {
      const auto n = static_cast<std::size_t>(old(h)) * sizeof(T);
      if (n == 0) continue;
      const cudaError_t e = cudaMemcpyAsync(more.data() + h * room, data_.data() + h * room_, n, cudaMemcpyDeviceToDevice, ctx.stream());
      if (const Status s = cuda::settled(e); s != Status::ok) return s;
    }
    if (const Status s = ctx.wait(); s != Status::ok) return s;
    std::swap(data_, more);
    room_ = room;
    return Status::ok;
  }
  void clear() { data_ = cuda::DeviceArray<T>(*memory_), room_ = 0; }

 private:
  cuda::DeviceArray<T> data_;
  MemoryResource<Cuda>* memory_;
  index_t room_ = 0;
};

/// One layer: which pages its heads have and how many slots, on the host; the same as kernels read it, on the device.
class CudaLayer {
 public:
  CudaLayer(const CudaPlan& plan, MemoryResource<Cuda>& memory)
      : offset(heap_memory()), pending_positions(heap_memory()), ids(memory), plan_(plan), memory_(&memory), spare_(heap_memory()),
        staging_(heap_memory()), table_(memory), lengths_(memory) {}
  CudaLayer(CudaLayer&&) = default;
  CudaLayer& operator=(CudaLayer&&) = delete;
  ~CudaLayer() { give_pages(); }

  Counters counters;
  Buffer<index_t> offset;  ///< heads + 1: where each head's slots begin in ragged views; the host's
  Buffer<index_t> pending_positions;
  SlotStore<std::int32_t> ids;  ///< tokens of the slots that a step has seen
  ObjectArray<SlotStore<float>> lanes;
  std::span<std::byte> steering;
  cuda::Fence fence;  ///< behind the last step, which reads `steering`

  Status make() {
    const index_t heads = plan_.shape.kv_heads;
    Status s = offset.resize(heads + 1);
    if (s == Status::ok) s = pages_.fill(heap_memory(), heads, [](index_t) { return Buffer<std::byte*>(heap_memory()); });
    if (s == Status::ok) s = lanes.fill(heap_memory(), plan_.lanes, [&](index_t) { return SlotStore<float>(*memory_); });
    if (s == Status::ok) s = lengths_.resize(2 * heads + 1);
    // An empty cache may be attended to and have a turn before anything was appended.
    if (s == Status::ok) s = cuda::settled(cudaMemsetAsync(lengths_.data(), 0, static_cast<std::size_t>(lengths_.size()) * sizeof(index_t), nullptr));
    if (s == Status::ok) s = cuda::settled(cudaStreamSynchronize(nullptr));
    return s == Status::ok ? fence.make() : s;
  }

  index_t slots(index_t head) const { return offset[head + 1] - offset[head]; }
  index_t total() const { return offset[plan_.shape.kv_heads]; }
  index_t longest() const {
    index_t most = 0;
    for (index_t h = 0; h < plan_.shape.kv_heads; ++h) most = std::max(most, slots(h));
    return most;
  }
  bool equally_long() const { return longest() * plan_.shape.kv_heads == total(); }
  /// Position of the next token unless the caller says otherwise.
  index_t next_position() const { return counters.pending > 0 ? pending_positions.back() + 1 : counters.stepped_position; }

  /// Pages, tables and numbers for `tokens` more slots of each head. On refusal nothing that counts changes.
  Status reserve(const Context<Cuda>& ctx, index_t tokens) {
    const index_t heads = plan_.shape.kv_heads;
    if (const Status s = pending_positions.reserve(counters.pending + tokens); s != Status::ok) return s;
    const auto stepped = [&](index_t h) { return slots(h) - counters.pending; };
    if (const Status s = ids.reserve(ctx, heads, longest() + tokens, stepped); s != Status::ok) return s;
    for (auto& l : lanes)
      if (const Status s = l.reserve(ctx, heads, longest() + tokens, stepped); s != Status::ok) return s;
    Status s = Status::ok;
    for (index_t h = 0; h < heads; ++h)
      while (s == Status::ok && pages_[h].size() < plan_.pages_for(slots(h) + tokens)) {
        if (s = pages_[h].reserve(pages_[h].size() + 1); s != Status::ok) break;
        void* page = nullptr;
        if (!spare_.empty()) page = spare_.back(), spare_.shrink(spare_.size() - 1);
        else page = memory_->allocate(plan_.page_bytes(), 64);
        if (page == nullptr) s = Status::out_of_memory;
        else pages_[h].append_reserved(static_cast<std::byte*>(page)), moved_ = true;
      }
    if (s == Status::ok) s = reserve_table(ctx);
    if (s != Status::ok) static_cast<void>(trim(ctx));  // else the next `set_slots` would want a table for these pages
    return s;
  }

  /// The heads have this many slots from now on; what kernels read follows in the order of the stream.
  template <class Slots>
  Status set_slots(const Context<Cuda>& ctx, Slots&& slots_of) {
    const index_t heads = plan_.shape.kv_heads;
    index_t sum = 0;
    for (index_t h = 0; h < heads; ++h) {
      const index_t n = slots_of(h);
      offset[h] = sum, sum += n;
    }
    offset[heads] = sum;
    return upload(ctx);
  }
  /// Gives up the pages behind the last slots. Some are kept for the slots to come; the others go back when the stream
  /// has done with them.
  Status trim(const Context<Cuda>& ctx) {
    const index_t heads = plan_.shape.kv_heads;
    for (index_t h = 0; h < heads; ++h) {
      const index_t needed = plan_.pages_for(slots(h));
      while (pages_[h].size() > needed && spare_.push_back(pages_[h].back()) == Status::ok) pages_[h].shrink(pages_[h].size() - 1), moved_ = true;
    }
    if (spare_.size() <= 2 * heads) return Status::ok;
    const Status s = ctx.wait();
    for (; spare_.size() > heads; spare_.shrink(spare_.size() - 1)) memory_->release(spare_.back(), plan_.page_bytes(), 64);
    return s;
  }

  // What kernels read.
  const index_t* device_offset() const { return lengths_.data(); }
  const index_t* device_slots() const { return lengths_.data() + plan_.shape.kv_heads + 1; }
  prim::PageTable key_pages() const { return {at<std::byte*>(places().key_pages), at<index_t>(0), plan_.shape.kv_heads, plan_.shape.page_slots, plan_.shape.head_dim}; }
  prim::PageTable value_pages() const { return {at<std::byte*>(places().value_pages), at<index_t>(0), plan_.shape.kv_heads, plan_.shape.page_slots, plan_.shape.values()}; }
  prim::ColumnRuns key_runs() const { return {at<prim::SlotRun>(places().key_runs), at<index_t>(0), 0}; }
  prim::ColumnRuns value_runs() const { return {at<prim::SlotRun>(places().value_runs), at<index_t>(0), 0}; }
  prim::PagedHeads<prim::ExactRows, prim::ExactRows> heads() const {
    return {plan_.codec(), plan_.codec(), plan_.codec(), key_runs(), value_runs(), device_slots(), plan_.shape.kv_heads};
  }
  std::byte* page(index_t head, index_t slot) const { return pages_[head][slot / plan_.shape.page_slots]; }

  std::size_t page_bytes() const { return static_cast<std::size_t>(count_pages() + spare_.size()) * plan_.page_bytes(); }
  std::size_t side_bytes() const {
    std::size_t n = ids.bytes() + static_cast<std::size_t>(table_.size()) + static_cast<std::size_t>(lengths_.size()) * sizeof(index_t);
    for (const auto& l : lanes) n += l.bytes();
    return n;
  }

  /// Empty again; only while no kernel uses it.
  void clear() {
    give_pages();
    for (index_t h = 0; h <= plan_.shape.kv_heads; ++h) offset[h] = 0;
    pending_positions.shrink(0);
    counters = {};
    ids.clear();
    for (auto& l : lanes) l.clear();
  }

 private:
  /// Bytes in the table, for so many pages: where heads begin, runs of keys and values, pages of keys and values.
  struct Places {
    std::size_t key_runs, value_runs, key_pages, value_pages, end;
  };
  Places places() const {
    const auto n = static_cast<std::size_t>(table_pages_);
    Places p{};
    p.key_runs = static_cast<std::size_t>(plan_.shape.kv_heads + 1) * sizeof(index_t);
    p.value_runs = p.key_runs + n * sizeof(prim::SlotRun);
    p.key_pages = p.value_runs + n * sizeof(prim::SlotRun);
    p.value_pages = p.key_pages + n * sizeof(std::byte*);
    p.end = p.value_pages + n * sizeof(std::byte*);
    return p;
  }
  static_assert(alignof(prim::SlotRun) <= alignof(index_t) && sizeof(prim::SlotRun) % alignof(std::byte*) == 0);
  template <class T>
  const T* at(std::size_t byte) const {
    return reinterpret_cast<const T*>(table_.data() + byte);
  }
  index_t count_pages() const {
    index_t n = 0;
    for (const auto& p : pages_) n += p.size();
    return n;
  }

  /// Room in the table for the pages that there are, so that `upload` needs no memory.
  Status reserve_table(const Context<Cuda>& ctx) {
    const index_t before = table_pages_, pages = count_pages();
    if (pages <= before) return Status::ok;
    table_pages_ = std::max<index_t>(pages, 2 * before);
    const auto bytes = static_cast<index_t>(places().end);
    Status s = staging_.reserve(bytes);
    if (s == Status::ok) s = ctx.wait();  // somebody may still read the smaller one
    if (s == Status::ok) s = table_.resize(bytes);
    if (s != Status::ok) table_pages_ = before;
    return s;
  }

  Status upload(const Context<Cuda>& ctx) {
    const index_t heads = plan_.shape.kv_heads;
    if (const Status s = staging_.resize(0); s != Status::ok) return s;
    if (moved_) {
      const Places p = places();
      if (table_.size() != static_cast<index_t>(p.end)) {
        if (const Status s = ctx.wait(); s != Status::ok) return s;  // somebody may still read the smaller one
        if (const Status s = table_.resize(static_cast<index_t>(p.end)); s != Status::ok) return s;
      }
      if (const Status s = staging_.resize(static_cast<index_t>(p.end)); s != Status::ok) return s;
      const auto put = [&](std::size_t byte, const auto& value) { std::memcpy(staging_.data() + byte, &value, sizeof value); };
      std::size_t n = 0;
      for (index_t h = 0; h < heads; ++h) {
        put(static_cast<std::size_t>(h) * sizeof(index_t), static_cast<index_t>(n));
        std::int32_t begin = 0;
        for (std::byte* page : pages_[h]) {
          std::byte* values = page + plan_.key_bytes();
          put(p.key_runs + n * sizeof(prim::SlotRun), prim::SlotRun{page, begin, 0, false});
          put(p.value_runs + n * sizeof(prim::SlotRun), prim::SlotRun{values, begin, 0, false});
          put(p.key_pages + n * sizeof page, page);
          put(p.value_pages + n * sizeof page, values);
          begin += static_cast<std::int32_t>(plan_.shape.page_slots), ++n;
        }
      }
      put(static_cast<std::size_t>(heads) * sizeof(index_t), static_cast<index_t>(n));
      // Memory that is not page-locked is read before the call returns.
      const cudaError_t e = cudaMemcpyAsync(table_.data(), staging_.data(), p.end, cudaMemcpyHostToDevice, ctx.stream());
      if (const Status s = cuda::settled(e); s != Status::ok) return s;
      moved_ = false;
    }
    if (const Status s = staging_.resize((2 * heads + 1) * static_cast<index_t>(sizeof(index_t))); s != Status::ok) return s;
    auto* numbers = reinterpret_cast<index_t*>(staging_.data());
    for (index_t h = 0; h <= heads; ++h) numbers[h] = offset[h];
    for (index_t h = 0; h < heads; ++h) numbers[heads + 1 + h] = slots(h);
    return lengths_.upload(ctx, {numbers, static_cast<std::size_t>(2 * heads + 1)});
  }

  void give_pages() {
    for (auto& list : pages_) {
      for (std::byte* p : list) memory_->release(p, plan_.page_bytes(), 64);
      list.shrink(0);
    }
    for (std::byte* p : spare_) memory_->release(p, plan_.page_bytes(), 64);
    spare_.shrink(0);
    moved_ = true;
  }

  CudaPlan plan_;
  MemoryResource<Cuda>* memory_;
  ObjectArray<Buffer<std::byte*>> pages_;
  Buffer<std::byte*> spare_;
  Buffer<std::byte, 64> staging_;
  cuda::DeviceArray<std::byte> table_;
  cuda::DeviceArray<index_t> lengths_;  ///< offsets, then slots of every head
  index_t table_pages_ = 0;
  bool moved_ = true;  ///< pages came or went since the table was written
};

}  // namespace kvcondense::cache
