#pragma once

#include <algorithm>
#include <cstring>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::storage {

/// Gathers chosen rows from a medium that reads whole pages only, each page once.
///
/// Idea     on flash the cost of a selection is the pages it touches, not its rows: read a page, keep of it what
///          is wanted. Rows that are wanted together should lie together.
/// Source   InstInfer, arXiv:2409.04992, page-granular reads of its SparF attention.
/// Needs    a reader of pages.
/// Shapes   rows of `row_bytes`, one behind the other from byte `first_byte` on; wanted rows ascending.
/// Cost     one read per page touched; one page of scratch. Nothing is read twice.
/// Numbers  bytes move as they are.
/// Errors   invalid_argument: sizes below 1, rows that do not ascend, are negative or end beyond 2^62 bytes; workspace_too_small:
///          scratch below a page, or room below the rows; io_error: the reader said no.
struct StoragePages {
  static constexpr Descriptor about{"storage_pages", Stage::storage, "arXiv:2409.04992"};

  static constexpr index_t most_bytes = index_t{1} << 62;  ///< of the medium

  index_t row_bytes = 1;
  index_t page_bytes = 4096;
  index_t first_byte = 0;

  Status validate() const {
    const auto sane = [](index_t x) { return x > 0 && x <= (index_t{1} << 32); };
    return sane(row_bytes) && sane(page_bytes) && first_byte >= 0 && first_byte < most_bytes ? Status::ok : Status::invalid_argument;
  }

  index_t first_page(index_t row) const { return (first_byte + row * row_bytes) / page_bytes; }
  index_t last_page(index_t row) const { return (first_byte + (row + 1) * row_bytes - 1) / page_bytes; }

  /// Calls use(page) once for every page that holds a part of a wanted row, in order.
  template <class Use>
  void each(std::span<const index_t> rows, Use&& use) const {
    index_t next = 0;
    for (const index_t r : rows) {
      for (index_t p = std::max(next, first_page(r)); p <= last_page(r); ++p) use(p);
      next = last_page(r) + 1;
    }
  }
  index_t touched(std::span<const index_t> rows) const {
    index_t n = 0;
    each(rows, [&](index_t) { ++n; });
    return n;
  }

  /// Puts wanted rows behind each other into `out`. read(page, bytes) fills one page and returns whether it could.
  template <class Read>
  Status gather(std::span<const index_t> rows, Read&& read, std::span<std::byte> page, std::span<std::byte> out) const {
    if (validate() != Status::ok) return Status::invalid_argument;
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (rows[i] < 0 || rows[i] >= (most_bytes - first_byte) / row_bytes || (i > 0 && rows[i] <= rows[i - 1])) return Status::invalid_argument;
    if (page.size() < static_cast<std::size_t>(page_bytes)) return Status::workspace_too_small;
    if (out.size() < rows.size() * static_cast<std::size_t>(row_bytes)) return Status::workspace_too_small;
    bool fine = true;
    std::size_t from = 0;  // rows before it are complete
    each(rows, [&](index_t p) {
      fine = fine && read(p, page.first(static_cast<std::size_t>(page_bytes)));
      if (!fine) return;
      for (std::size_t i = from; i < rows.size() && first_page(rows[i]) <= p; ++i) {
        const index_t row = first_byte + rows[i] * row_bytes, here = p * page_bytes;
        const index_t begin = std::max(row, here), end = std::min(row + row_bytes, here + page_bytes);
        if (begin < end)
          std::memcpy(out.data() + static_cast<index_t>(i) * row_bytes + (begin - row), page.data() + (begin - here),
                      static_cast<std::size_t>(end - begin));
        if (last_page(rows[i]) <= p) from = i + 1;
      }
    });
    return fine ? Status::ok : Status::io_error;
  }
};

}  // namespace kvcondense::storage
