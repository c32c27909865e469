#pragma once

#include <algorithm>
#include <span>
#include <utility>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::storage {

/// Gives rows of one pool to whatever comes in rows of that size: keys and values of tokens, adapters.
///
/// Idea     adapters and caches grow and shrink at each other's cost when both take rows of the hidden size from
///          one pool; nothing has to lie together, so nothing fragments.
/// Source   S-LoRA, arXiv:2311.03285, unified paging.
/// Needs    nothing but memory.
/// Shapes   `rows` rows of `row_bytes`; a token takes one row for keys and one for values per layer where heads
///          are not grouped, an adapter of rank R 8 R rows per layer.
/// Cost     taking n rows looks at the marks from the lowest free row on; take_run looks at all marks.
/// Numbers  rows are taken lowest first, runs from the smallest gap that fits.
/// Errors   out_of_memory: fewer rows are free (or no gap is long enough), nothing was taken; invalid_argument: a row
///          that is not taken, or named twice, was to be returned, and nothing was.
class RowPool {
 public:
  static constexpr Descriptor about{"row_pool", Stage::storage, "arXiv:2311.03285"};

  static Expected<RowPool> make(index_t rows, index_t row_bytes, MemoryResource<Cpu>& memory = heap_memory()) {
    if (rows < 1 || row_bytes < 1 || rows > (index_t{1} << 40) / row_bytes) return Status::invalid_argument;
    RowPool pool(memory);
    pool.row_bytes_ = row_bytes;
    if (const Status s = pool.data_.reserve(rows * row_bytes, true); s != Status::ok) return s;
    if (const Status s = pool.taken_.reserve(rows, true); s != Status::ok) return s;
    (void)pool.taken_.resize(rows, 0);
    pool.free_ = rows;
    return Expected<RowPool>(std::move(pool));
  }

  index_t rows() const { return taken_.size(); }
  index_t free_rows() const { return free_; }
  index_t row_bytes() const { return row_bytes_; }
  std::byte* row(index_t r) { return data_.data() + r * row_bytes_; }
  const std::byte* row(index_t r) const { return data_.data() + r * row_bytes_; }

  /// Any rows, ascending, as many as `out` holds.
  Status take(std::span<index_t> out) {
    const auto n = static_cast<index_t>(out.size());
    if (n > free_) return Status::out_of_memory;
    index_t r = lowest_;
    for (index_t& o : out) {
      while (taken_[r] != 0) ++r;
      taken_[r] = 1;
      o = r++;
    }
    lowest_ = n == 0 ? lowest_ : r;
    free_ -= n;
    return Status::ok;
  }

  /// `n` rows that lie together: the first of them.
  Expected<index_t> take_run(index_t n) {
    if (n < 1) return Status::invalid_argument;
    index_t best = -1, best_length = rows() + 1;
    for (index_t r = lowest_; r < rows();) {
      if (taken_[r] != 0) {
        ++r;
        continue;
      }
      index_t end = r;
      while (end < rows() && taken_[end] == 0) ++end;
      if (end - r >= n && end - r < best_length) best = r, best_length = end - r;
      r = end;
    }
    if (best < 0) return Status::out_of_memory;
    for (index_t r = best; r < best + n; ++r) taken_[r] = 1;
    free_ -= n;
    return best;
  }

  Status give_back(std::span<const index_t> rows_back) {
    // Marks are taken away one by one; a row that has none by then was named twice or never taken.
    for (std::size_t i = 0; i < rows_back.size(); ++i) {
      const index_t r = rows_back[i];
      if (r >= 0 && r < rows() && taken_[r] != 0) {
        taken_[r] = 0;
        continue;
      }
      for (std::size_t j = 0; j < i; ++j) taken_[rows_back[j]] = 1;
      return Status::invalid_argument;
    }
    for (const index_t r : rows_back) lowest_ = std::min(lowest_, r);
    free_ += static_cast<index_t>(rows_back.size());
    return Status::ok;
  }
  Status give_back_run(index_t first, index_t n) {
    if (n < 0 || first < 0 || first > rows() - n) return Status::invalid_argument;
    for (index_t r = first; r < first + n; ++r)
      if (taken_[r] == 0) return Status::invalid_argument;
    std::fill_n(taken_.data() + first, n, std::uint8_t{0});
    if (n > 0) lowest_ = std::min(lowest_, first);
    free_ += n;
    return Status::ok;
  }

 private:
  explicit RowPool(MemoryResource<Cpu>& memory) : data_(memory), taken_(memory) {}

  Buffer<std::byte> data_;
  Buffer<std::uint8_t> taken_;
  index_t row_bytes_ = 0, free_ = 0;
  index_t lowest_ = 0;  ///< no row below it is free
};

/// Rows of `hidden` numbers that keys and values of `tokens` take in `layers` layers, where tokens share rows.
constexpr index_t cache_rows(index_t tokens, index_t layers, index_t kv_width, index_t hidden) {
  const index_t per_tensor = (tokens * kv_width + hidden - 1) / hidden;
  return 2 * layers * per_tensor;
}
/// Rows that the matrices of an adapter take: two per rank for each of q, k, v, o.
constexpr index_t adapter_rows(index_t rank, index_t layers) { return 8 * rank * layers; }

}  // namespace kvcondense::storage
