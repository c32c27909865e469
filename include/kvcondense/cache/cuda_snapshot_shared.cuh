#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/paired_rows.cuh>
#include <kvcondense/cache/cuda_pages.cuh>
#include <kvcondense/cache/page_list.hpp>
#include <kvcondense/cache/snapshot_file.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/row_groups.hpp>

// Where rows that heads store together stand in a file.

namespace kvcondense::cache {

/// The same column of the heads before one that share rows with it, the nearest first.
template <class Column>
struct CudaBefore {
  /// A head of a layer's column.
  struct Head {
    const Column* column = nullptr;
    index_t head = 0;
  };
  Head at[max_row_group];
  index_t count = 0;
};
template <class C, class Layers>
auto cuda_before(const RowGroups& groups, const Layers& layers, index_t layer, index_t head, index_t heads, C std::remove_cvref_t<decltype(layers[0])>::*column) {
  CudaBefore<C> b;
  const Span in_group = groups.layers_of(layers.size(), layer), of_layer = groups.heads_of(heads, head);
  for (index_t l = layer; l >= in_group.first; --l)
    for (index_t h = l == layer ? head - 1 : of_layer.first + of_layer.count - 1; h >= of_layer.first; --h) b.at[b.count++] = {&(layers[l].*column), h};
  return b;
}

/// Where the rows of pages that heads share stand in a file.
template <class Column>
class SharedPlaces {
 public:
  SharedPlaces(const CudaBefore<Column>& before, bool paired) : before_(&before), paired_(paired) {}

  /// Whether the rows of a page stand in the file, of a head before. Pages one behind the other.
  bool has(const Column& column, index_t head, index_t page) {
    index_t n = 0;
    return find(column.coded_pages(head)[page].page->under, n) >= 0;
  }
  /// Behind the head of a page: how it lies there, and what its own head has of it, for which the stream is waited for; whether that is all of it.
  bool save(ByteWriter& w, const Context<Cuda>& ctx, const Column& column, index_t head, index_t page) {
    if (!paired_) return false;
    const CudaPage &mine = *column.coded_pages(head)[page].page, *rows = mine.under;
    if (rows == nullptr) return w.put(static_cast<std::uint32_t>(PageForm::alone)), false;
    index_t n = 0;
    const index_t at = find(rows, n);
    w.put(at < 0 ? static_cast<std::uint32_t>(PageForm::rows) : static_cast<std::uint32_t>(PageForm::shared) + static_cast<std::uint32_t>(n));
    if (at >= 0) w.put(static_cast<std::uint32_t>(at));
    const std::size_t own = mine.rows == nullptr ? 0 : mine.bytes - sizeof(prim::PairedHead);  // coordinates are no head's own
    Buffer<std::byte> bytes(heap_memory());
    Status s = bytes.resize(static_cast<index_t>(own));
    if (s == Status::ok && own > 0) {
      s = cuda::settled(cudaMemcpyAsync(bytes.data(), mine.rows + sizeof(prim::PairedHead), own, cudaMemcpyDeviceToHost, ctx.stream()));
      const Status done = ctx.wait();
      if (s == Status::ok) s = done;
    }
    if (s != Status::ok) return w.fail(s), true;
    w.put(static_cast<std::uint32_t>(own));
    w.bytes(bytes.span());
    return at >= 0;
  }

 private:
  /// The page of the `n`-th head before that has the same rows above; below 0: none.
  index_t find(const CudaPage* rows, index_t& n) {
    for (n = 0; n < before_->count; ++n)
      if (const index_t at = page_above(before_->at[n].column->coded_pages(before_->at[n].head), rows, from_[n]); at >= 0) return at;
    return -1;
  }

  const CudaBefore<Column>* before_;
  index_t from_[max_row_group] = {};
  bool paired_;
};

}  // namespace kvcondense::cache
