#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/row_transform.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cache {

/// A column's transform, and what it found in the rows that were coded first.
///
/// Queries and sums of values have two forms side by side, the plain one and the mapped one: `begin_queries` makes the
/// second, `finish_values` folds it back. Where the transform centres rows, one more number stands behind them: q . mean,
/// or the sum of the weights.
template <class Transform>
class RowMap {
  using Map = prim::MapOf<Cpu, Transform>;
  using Rows = prim::RowBlock<float>;

 public:
  RowMap() = default;
  RowMap(const Transform& transform, index_t dim, MemoryResource<Cpu>& memory)
      : transform_(transform), state_(memory), dim_(dim) {}

  const Transform& transform() const { return transform_; }
  bool mapped() const { return !prim::leaves_rows(transform_); }
  index_t width() const { return mapped() ? 2 * dim_ + (prim::is_centred(transform_) ? 1 : 0) : dim_; }

  /// Numbers that the transform keeps of what it found; empty before, and for all others.
  std::span<const float> state() const { return {state_.data(), static_cast<std::size_t>(state_.size())}; }
  index_t state_floats() const { return prim::floats_of(transform_, dim_); }
  bool waits() const { return state_floats() > 0 && state_.empty(); }
  std::size_t bytes() const { return state_.bytes(); }

  Status reserve() {
    const index_t finding = std::max(state_floats(), prim::finding_floats_of(transform_, dim_));
    return state_.empty() ? state_.reserve(finding, true) : Status::ok;
  }
  void trim() {
    if (state_.empty()) state_.free();
  }
  Status fork(RowMap& out) const { return out.state_.copy_from(state_); }
  void clear() { state_.shrink(0); }
  /// For what is found together with other columns: room for it, then all its numbers, in pieces.
  Status reserve_state() { return state_.reserve(state_floats(), true); }
  void add_state(std::span<const float> numbers) {
    for (const float x : numbers) state_.append_reserved(x);
  }
  /// For loaders: `bytes` of state_floats() numbers.
  Status restore(std::span<const std::byte> bytes) {
    const index_t n = state_floats();
    if (const Status s = state_.reserve(n, true); s != Status::ok) return s;
    if (const Status s = state_.resize(n); s != Status::ok) return s;
    std::memcpy(state_.data(), bytes.data(), static_cast<std::size_t>(n) * sizeof(float));
    return Map::good_state(transform_, dim_, state_.data()) ? Status::ok : Status::corrupt_data;
  }

  /// After `reserve`, once: `each` hands over the rows that are coded first, in pieces that may be used up.
  template <class F>
  void find(const prim::HeadQueries& queries, F&& each) {
    const index_t n = std::max(state_floats(), prim::finding_floats_of(transform_, dim_));
    for (index_t i = 0; i < n; ++i) state_.append_reserved(0.0f);
    each([&](Rows rows) { Map::observe(transform_, dim_, rows, state_.data()); });
    Map::settle(transform_, dim_, queries, state_.data());
    state_.shrink(state_floats());
    state_.fit();
  }

  void forward(Rows rows) const {
    if (const float* m = mean())
      for (index_t r = 0; r < rows.rows; ++r)
        for (index_t d = 0; d < dim_; ++d) rows.data[r * rows.step + d] -= m[d];
    Map::forward(transform_, state_.data(), dim_, rows);
  }
  void backward(Rows rows) const {
    Map::backward(transform_, state_.data(), dim_, rows);
    if (const float* m = mean())
      for (index_t r = 0; r < rows.rows; ++r)
        for (index_t d = 0; d < dim_; ++d) rows.data[r * rows.step + d] += m[d];
  }

  /// Makes the second form of queries whose first one is there.
  void begin_queries(Rows queries) const {
    const float* m = mean();
    for (index_t r = 0; r < queries.rows; ++r) {
      float* q = queries.data + r * queries.step;
      std::copy_n(q, dim_, q + dim_);
      if (m != nullptr) q[2 * dim_] = prim::cpu::dot(q, m, dim_);
    }
    Map::query(transform_, state_.data(), dim_, {queries.data + dim_, queries.rows, queries.step});
  }
  /// Adds the second form of sums of values to the first one.
  void finish_values(Rows sums) const {
    Map::backward(transform_, state_.data(), dim_, {sums.data + dim_, sums.rows, sums.step});
    const float* m = mean();
    for (index_t r = 0; r < sums.rows; ++r) {
      float* o = sums.data + r * sums.step;
      for (index_t d = 0; d < dim_; ++d) o[d] += o[dim_ + d];
      for (index_t d = 0; m != nullptr && d < dim_; ++d) o[d] += o[2 * dim_] * m[d];
    }
  }
  /// What centring owes `n` scores of coded slots, and sums of them.
  void add_to_scores(prim::RowBlock<const float> queries, Rows out, index_t n) const {
    if (mean() == nullptr) return;
    for (index_t r = 0; r < out.rows; ++r)
      for (index_t i = 0; i < n; ++i) out.data[r * out.step + i] += queries.data[r * queries.step + 2 * dim_];
  }
  void add_weights(prim::RowBlock<const float> weights, Rows out, index_t n) const {
    if (mean() == nullptr) return;
    for (index_t r = 0; r < weights.rows; ++r) {
      float sum = 0.0f;
      for (index_t i = 0; i < n; ++i) sum += weights.data[r * weights.step + i];
      out.data[r * out.step + 2 * dim_] += sum;
    }
  }

 private:
  const float* mean() const { return Map::mean(transform_, state_.data(), dim_); }

  Transform transform_{};
  Buffer<float> state_;
  index_t dim_ = 0;
};

}  // namespace kvcondense::cache
