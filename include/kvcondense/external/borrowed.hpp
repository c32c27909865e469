#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/paged_rows.hpp>

namespace kvcondense::external {

/// Keys and values of one layer in memory that an engine owns, and where the slots of one sequence lie in it.
///
/// Idea     slot s of every KV head lies in page table[s / page_slots]. A block table is that as it is; a contiguous cache
///          is one page that holds everything; a cell array is pages of one slot, and the table is the list of the
///          sequence's cells in the order of their positions.
/// Source   PagedAttention, arXiv:2309.06180; vLLM's block tables; llama.cpp's cells.
/// Needs    nothing; everything is borrowed for the length of a call.
/// Shapes   any PagedLayout in f32, f16, bf16. The table may be longer than the sequence; what it says beyond is not read.
/// Cost     checking it is one pass over the table and a bit per page of the pool.
/// Numbers  rows stay as the engine stored them.
/// Errors   invalid_argument: no memory, a layout in which rows overlap, a page named twice; out_of_range: a page that the
///          pool does not have, a table too short; shape_mismatch: row sizes, or owners of another pool.
struct BorrowedLayer {
  prim::PagedTensor keys;
  prim::PagedTensor values;
  std::span<const std::int32_t> table;
  index_t page_slots = 1;
  index_t pool_pages = 0;  ///< pages that the tensors hold
  index_t heads = 0;       ///< KV heads of a page
  /// Of each page of the pool, how many sequences have it; empty: this one alone. A page of several is read and never written.
  std::span<const std::int32_t> owners{};

  index_t page(index_t slot) const { return table[static_cast<std::size_t>(slot / page_slots)]; }
  bool shared(index_t page) const { return !owners.empty() && owners[static_cast<std::size_t>(page)] > 1; }
  prim::PagedSequence sequence(const index_t* slots) const { return {keys, values, table.data(), page_slots, slots}; }
  /// Slots at the front whose pages may be shared: those behind may all be written.
  index_t shared_slots(index_t slots) const {
    index_t last = 0;
    for (index_t p = 0; p * page_slots < slots; ++p)
      if (shared(table[static_cast<std::size_t>(p)])) last = std::min(slots, (p + 1) * page_slots);
    return last;
  }
};

namespace detail {

inline constexpr std::int32_t one_page[] = {0};

template <class T>
inline constexpr DType dtype_of = std::is_same_v<T, float> ? DType::f32 : std::is_same_v<T, half> ? DType::f16 : DType::bf16;

/// Whether no two numbers of a tensor share a place: strides in ascending order, each at least as long as what it steps over.
inline bool apart(const prim::PagedTensor& t, index_t heads, index_t page_slots, index_t pages) {
  const prim::PagedLayout& l = t.layout;
  if (l.chunk < 1 || t.dim < 1) return false;
  std::pair<index_t, index_t> steps[] = {{1, std::min(l.chunk, t.dim)}, {l.chunk_step, (t.dim - 1) / l.chunk + 1},
                                         {l.slot, page_slots}, {l.head, heads}, {l.page, pages}};
  constexpr index_t most = index_t{1} << 46;  // keeps offsets inside index_t
  for (const auto& [step, count] : steps)
    if (count > 1 && (step < 1 || step > most || count > most / step)) return false;
  std::sort(std::begin(steps), std::end(steps));
  index_t reach = 1;
  for (const auto& [step, count] : steps) {
    if (count <= 1) continue;
    if (step < reach) return false;
    reach = step * count;
  }
  return true;
}

}  // namespace detail

/// The first `pages` entries of a table name each page of the pool once at most. `bits`: a word per 64 pages.
inline Status check_table(std::span<const std::int32_t> table, index_t pages, index_t pool_pages, std::uint64_t* bits) {
  if (static_cast<index_t>(table.size()) < pages) return Status::out_of_range;
  std::fill_n(bits, (pool_pages + 63) / 64, std::uint64_t{0});
  for (index_t i = 0; i < pages; ++i) {
    const index_t p = table[static_cast<std::size_t>(i)];
    if (p < 0 || p >= pool_pages) return Status::out_of_range;
    const std::uint64_t bit = std::uint64_t{1} << (p % 64);
    if ((bits[p / 64] & bit) != 0) return Status::invalid_argument;
    bits[p / 64] |= bit;
  }
  return Status::ok;
}

/// Everything about a layer that holds `slots` slots. `scratch`: Scratch::bytes_for<std::uint64_t>((pool_pages + 63) / 64).
inline Status check(const BorrowedLayer& b, const CacheShape& shape, index_t slots, Scratch scratch) {
  if (b.heads != shape.kv_heads || b.keys.dim != shape.head_dim || b.values.dim != shape.values()) return Status::shape_mismatch;
  if (!b.owners.empty() && static_cast<index_t>(b.owners.size()) != b.pool_pages) return Status::shape_mismatch;
  constexpr index_t most = index_t{1} << 31;
  if (b.page_slots < 1 || b.page_slots > most || b.pool_pages < 0 || b.pool_pages > most) return Status::invalid_argument;
  for (const prim::PagedTensor* t : {&b.keys, &b.values})
    if ((t->data == nullptr && slots > 0) || !detail::apart(*t, shape.kv_heads, b.page_slots, b.pool_pages)) return Status::invalid_argument;
  auto* bits = scratch.take<std::uint64_t>((b.pool_pages + 63) / 64);
  if (bits == nullptr) return Status::workspace_too_small;
  return check_table(b.table, (slots + b.page_slots - 1) / b.page_slots, b.pool_pages, bits);
}

/// A cache in arrays [kv_heads, room, dim] of any strides; T is float, half or bfloat16.
template <class T>
BorrowedLayer borrow_contiguous(TensorView<T, 3> keys, TensorView<T, 3> values) {
  static_assert(StoredNumbers<T, T>, "kvcondense: keys and values are float, half or bfloat16.");
  const auto tensor = [](const TensorView<T, 3>& v) {
    return prim::PagedTensor{reinterpret_cast<std::byte*>(v.data), detail::dtype_of<T>, v.extent[2],
                             {0, v.stride[0], v.stride[1], v.stride[2] == 1 ? v.extent[2] : 1, v.stride[2] == 1 ? v.extent[2] : v.stride[2]}};
  };
  const index_t heads = keys.extent[0] == values.extent[0] ? keys.extent[0] : 0;
  const index_t room = std::min(keys.extent[1], values.extent[1]);
  return {tensor(keys), tensor(values), detail::one_page, std::max<index_t>(1, room), room > 0 ? 1 : 0, heads, {}};
}

/// Blocks [blocks, slots, heads, dim] (NHD) or [blocks, heads, slots, dim] (HND) and a sequence's block table.
template <class T>
BorrowedLayer borrow_blocks(T* keys, T* values, const CacheShape& shape, index_t block_slots, index_t blocks,
                            std::span<const std::int32_t> table, bool heads_first = false) {
  static_assert(StoredNumbers<T, T>, "kvcondense: keys and values are float, half or bfloat16.");
  const auto tensor = [&](T* data, index_t dim) {
    return prim::PagedTensor{reinterpret_cast<std::byte*>(data), detail::dtype_of<T>, dim,
                             heads_first ? prim::hnd_layout(block_slots, shape.kv_heads, dim) : prim::nhd_layout(block_slots, shape.kv_heads, dim)};
  };
  return {tensor(keys, shape.head_dim), tensor(values, shape.values()), table, block_slots, blocks, shape.kv_heads, {}};
}

/// Cells [cells, heads, dim]; values by channels, [heads, dim, cells], where `channels` says so. `list`: the sequence's cells.
template <class T>
BorrowedLayer borrow_cells(T* keys, T* values, const CacheShape& shape, index_t cells, std::span<const std::int32_t> list, bool channels = false) {
  BorrowedLayer b = borrow_blocks(keys, values, shape, 1, cells, list);
  if (channels) b.values.layout = prim::cell_channel_layout(cells, shape.values());
  return b;
}

/// A number, or any few bytes, that an engine keeps beside each slot: a position, a scale, a sequence id. Steps in bytes from one
/// page, head or slot of a page to the next; head 0: one for all heads.
struct SlotBytes {
  std::byte* data = nullptr;
  index_t bytes = 0;
  index_t page = 0;
  index_t head = 0;
  index_t slot = 0;

  std::byte* at(index_t p, index_t h, index_t s) const { return data + p * page + h * head + s * slot; }
};

/// One T per place of a pool of pages, in the order of pages.
template <class T>
SlotBytes slot_bytes(T* data, index_t page_slots) {
  static_assert(std::is_trivially_copyable_v<T>, "kvcondense: what moves with slots is trivially copyable.");
  constexpr auto size = static_cast<index_t>(sizeof(T));
  return {reinterpret_cast<std::byte*>(data), size, page_slots * size, 0, size};
}

}  // namespace kvcondense::external
