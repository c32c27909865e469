#pragma once

#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/prim/channel_scale.hpp>
#include <kvcondense/prim/hadamard.hpp>
#include <kvcondense/prim/row_transform.hpp>
#include <kvcondense/prim/settle_map.hpp>

namespace kvcondense::prim {

template <>
struct RowTransform<Cpu, NoTransform> {
  static void forward(const NoTransform&, index_t, RowBlock<float>) {}
  static void backward(const NoTransform&, index_t, RowBlock<float>) {}
  static void query(const NoTransform&, index_t, RowBlock<float>) {}
};

template <>
struct RowTransform<Cpu, Hadamard> {
  static void forward(const Hadamard& t, index_t dim, RowBlock<float> rows) {
    for (index_t r = 0; r < rows.rows; ++r) {
      float* x = rows.data + r * rows.step;
      if (t.seed != 0) signs(t.seed, dim, x);
      hadamard_mix(t.size(dim), x, t.overlap ? t.size(dim) : dim);
      if (!again(t, dim)) continue;
      signs(between(t), dim, x);
      hadamard_mix(t.size(dim), x + dim - t.size(dim), t.size(dim));
    }
  }
  static void backward(const Hadamard& t, index_t dim, RowBlock<float> rows) {
    for (index_t r = 0; r < rows.rows; ++r) {
      float* x = rows.data + r * rows.step;
      if (again(t, dim)) {
        hadamard_mix(t.size(dim), x + dim - t.size(dim), t.size(dim));
        signs(between(t), dim, x);
      }
      hadamard_mix(t.size(dim), x, t.overlap ? t.size(dim) : dim);
      if (t.seed != 0) signs(t.seed, dim, x);
    }
  }
  /// Orthonormal: a query is mapped as a key is.
  static void query(const Hadamard& t, index_t dim, RowBlock<float> rows) { forward(t, dim, rows); }

 private:
  /// A second block at the other end?
  static bool again(const Hadamard& t, index_t dim) { return t.overlap && t.size(dim) < dim; }

  /// Without new signs the second block would undo most of what the first one did.
  static std::uint64_t between(const Hadamard& t) { return ~t.seed; }

  static void signs(std::uint64_t seed, index_t dim, float* x) {
    for (index_t c = 0; c < dim; ++c)
      if ((random_bits(seed, static_cast<std::uint64_t>(c)) & 1u) != 0) x[c] = -x[c];
  }
};

template <>
struct RowTransform<Cpu, ChannelScale> {
  static void forward(const ChannelScale& t, const float* state, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) times(state, dim, rows);
  }
  static void backward(const ChannelScale& t, const float* state, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) times(state + dim, dim, rows);
  }
  static void query(const ChannelScale& t, const float* state, index_t dim, RowBlock<float> rows) {
    backward(t, state, dim, rows);
  }

  static void observe(const ChannelScale&, index_t dim, RowBlock<float> rows, float* state) {
    for (index_t r = 0; r < rows.rows; ++r)
      for (index_t c = 0; c < dim; ++c) state[c] = ChannelScale::larger(state[c], rows.data[r * rows.step + c]);
  }
  static void settle(const ChannelScale& t, index_t dim, const HeadQueries& queries, float* state) {
    float* asked = state + dim;
    for (index_t h = queries.first; h < queries.first + queries.count && t.needs_queries(); ++h)
      for (index_t i = 0; i < queries.rows.extent[1]; ++i)
        for (index_t c = 0; c < dim; ++c) asked[c] = ChannelScale::larger(asked[c], queries.rows(h, i, c));
    settle_scales(t, dim, queries.count * queries.rows.extent[1], state);
  }

 private:
  static void times(const float* factor, index_t dim, RowBlock<float> rows) {
    for (index_t r = 0; r < rows.rows; ++r)
      for (index_t c = 0; c < dim; ++c) rows.data[r * rows.step + c] *= factor[c];
  }
};

/// One of the two may have a state, so both are handed the same.
template <class First, class Second>
struct RowTransform<Cpu, Chained<First, Second>> {
  using Both = Chained<First, Second>;
  using One = MapOf<Cpu, First>;
  using Two = MapOf<Cpu, Second>;

  static const float* mean(const Both& t, const float* state, index_t dim) {
    return leaves_rows(t.first) ? Two::mean(t.second, state, dim) : One::mean(t.first, state, dim);
  }
  static void forward(const Both& t, const float* state, index_t dim, RowBlock<float> rows) {
    One::forward(t.first, state, dim, rows);
    Two::forward(t.second, state, t.first.stored_dim(dim), rows);
  }
  static void backward(const Both& t, const float* state, index_t dim, RowBlock<float> rows) {
    Two::backward(t.second, state, t.first.stored_dim(dim), rows);
    One::backward(t.first, state, dim, rows);
  }
  static void query(const Both& t, const float* state, index_t dim, RowBlock<float> rows) {
    One::query(t.first, state, dim, rows);
    Two::query(t.second, state, t.first.stored_dim(dim), rows);
  }
  static void observe(const Both& t, index_t dim, RowBlock<float> rows, float* state) {
    if (floats_of(t.first, dim) > 0) return One::observe(t.first, dim, rows, state);
    One::forward(t.first, state, dim, rows);
    Two::observe(t.second, t.first.stored_dim(dim), rows, state);
  }
  static void settle(const Both& t, index_t dim, const HeadQueries& queries, float* state) {
    if (floats_of(t.first, dim) > 0) One::settle(t.first, dim, queries, state);
    else Two::settle(t.second, t.first.stored_dim(dim), queries, state);
  }
  static bool good_state(const Both& t, index_t dim, const float* state) {
    if (floats_of(t.first, dim) > 0) return One::good_state(t.first, dim, state);
    return Two::good_state(t.second, t.first.stored_dim(dim), state);
  }
};

}  // namespace kvcondense::prim
