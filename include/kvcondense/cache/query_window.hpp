#pragma once

#include <algorithm>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::cache {

/// The newest queries that steps have seen, for policies that look back at more than one step. A ring
/// of rows [q_heads, head_dim], one per token, made once.
class QueryWindow {
 public:
  QueryWindow() = default;

  static Status make(index_t rows, const CacheShape& shape, MemoryResource<Cpu>& memory, QueryWindow& out) {
    out.most_ = rows;
    out.width_ = shape.q_heads * shape.head_dim;
    out.numbers_ = Buffer<float>(memory);
    out.positions_ = Buffer<index_t>(memory);
    if (rows == 0) return Status::ok;
    if (const Status s = out.numbers_.reserve(rows * out.width_, true); s != Status::ok) return s;
    if (const Status s = out.positions_.reserve(rows, true); s != Status::ok) return s;
    (void)out.numbers_.resize(rows * out.width_);
    return out.positions_.resize(rows);
  }

  index_t most() const { return most_; }
  index_t size() const { return size_; }
  std::size_t bytes() const { return numbers_.bytes() + positions_.bytes(); }

  /// Row i, 0 the oldest: numbers of query head h at h * head_dim.
  const float* row(index_t i) const { return numbers_.data() + place(i) * width_; }
  index_t position(index_t i) const { return positions_[place(i)]; }

  /// The newest of `queries` [q_heads, n, head_dim], whose last token is `newest`.
  void push(TensorView<const float, 3> queries, const index_t* positions, index_t newest) {
    const index_t n = queries.extent[1], dim = queries.extent[2];
    for (index_t t = std::max<index_t>(0, n - most_); t < n; ++t) {
      float* to = push_row(positions[t]);
      for (index_t h = 0; h < queries.extent[0]; ++h)
        for (index_t d = 0; d < dim; ++d) to[h * dim + d] = queries(h, t, d);
    }
    end_ = newest + 1;
  }
  /// For loaders: one row, whose numbers the caller fills.
  float* push_row(index_t position) {
    if (size_ == most_) first_ = (first_ + 1) % most_;
    else ++size_;
    positions_[place(size_ - 1)] = position;
    return numbers_.data() + place(size_ - 1) * width_;
  }
  void set_end(index_t end) { end_ = end; }

  /// Forgets queries of tokens from ordinal `tokens` on.
  void truncate(index_t tokens) {
    size_ = std::max<index_t>(0, size_ - std::max<index_t>(0, end_ - tokens));
    end_ = std::min(end_, tokens);
  }

  Status fork(QueryWindow& out) const {
    out.first_ = first_, out.size_ = size_, out.end_ = end_;
    std::copy_n(numbers_.data(), numbers_.size(), out.numbers_.data());  // made alike
    std::copy_n(positions_.data(), positions_.size(), out.positions_.data());
    return Status::ok;
  }

 private:
  index_t place(index_t i) const { return (first_ + i) % most_; }

  Buffer<float> numbers_;
  Buffer<index_t> positions_;
  index_t most_ = 0, width_ = 0;
  index_t first_ = 0, size_ = 0;
  index_t end_ = 0;  ///< ordinal behind the newest row
};

}  // namespace kvcondense::cache
