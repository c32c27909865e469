#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/channel_list.hpp>
#include <kvcondense/prim/found_basis.hpp>
#include <kvcondense/prim/projection.hpp>
#include <kvcondense/prim/settle_map.hpp>

// Transforms that store fewer numbers than a row has. Rows are mapped in place: their first numbers become the stored ones.

namespace kvcondense::prim {

namespace cpu {

/// z[j] = sum over i of x[i] e[i][j], for j < rank; z over x.
inline void into_basis(const float* e, index_t dim, index_t step, index_t rank, RowBlock<float> rows) {
  float z[max_head_dim];
  const index_t whole = rank / lanes * lanes;
  for (index_t r = 0; r < rows.rows; ++r) {
    float* x = rows.data + r * rows.step;
    for (index_t j = 0; j < whole; j += lanes) {
      Lanes s{}, y;
      for (index_t i = 0; i < dim; ++i) {
        load(y, e + i * step + j);
        s += y * x[i];
      }
      std::memcpy(z + j, &s, sizeof s);
    }
    for (index_t k = 0; k < rank % lanes; ++k) {
      float s = 0.0f;
      for (index_t i = 0; i < dim; ++i) s += x[i] * e[i * step + whole + k];
      z[whole + k] = s;
    }
    std::copy_n(z, rank, x);
  }
}

/// x[i] = z . d[i], for i < dim; x over z.
inline void out_of_basis(const float* d, index_t dim, index_t step, index_t rank, RowBlock<float> rows) {
  float x[max_head_dim];
  for (index_t r = 0; r < rows.rows; ++r) {
    float* z = rows.data + r * rows.step;
    for (index_t i = 0; i < dim; ++i) x[i] = dot(z, d + i * step, rank);
    std::copy_n(x, dim, z);
  }
}

}  // namespace cpu

template <>
struct RowTransform<Cpu, Projection> {
  static const float* mean(const Projection& t, index_t) { return t.mean; }
  static void forward(const Projection& t, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) cpu::into_basis(t.encode, dim, t.columns, t.rank, rows);
  }
  static void backward(const Projection& t, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) cpu::out_of_basis(t.decode, dim, t.columns, t.rank, rows);
  }
  static void query(const Projection& t, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) cpu::into_basis(t.decode, dim, t.columns, t.rank, rows);
  }
};

template <>
struct RowTransform<Cpu, FoundBasis> {
  static const float* mean(const FoundBasis& t, const float* state, index_t dim) {
    return t.centred() && state != nullptr ? state + t.rank * dim : nullptr;
  }
  /// The state holds directions as rows, a projection's arrays as columns.
  static void forward(const FoundBasis& t, const float* state, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) cpu::out_of_basis(state, t.rank, dim, dim, rows);
  }
  static void backward(const FoundBasis& t, const float* state, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) cpu::into_basis(state, t.rank, dim, dim, rows);
  }
  static void query(const FoundBasis& t, const float* state, index_t dim, RowBlock<float> rows) {
    forward(t, state, dim, rows);
  }

  /// state: sums of products [dim][dim], of numbers [dim], and how many rows.
  static void observe(const FoundBasis&, index_t dim, RowBlock<float> rows, float* state) {
    for (index_t r = 0; r < rows.rows; ++r) {
      const float* x = rows.data + r * rows.step;
      bool some = true;
      for (index_t i = 0; i < dim; ++i) some = some && std::fabs(x[i]) <= 1e15f;
      if (!some) continue;
      for (index_t i = 0; i < dim; ++i) {
        float* to = state + i * dim;
        for (index_t j = 0; j < dim; ++j) to[j] += x[i] * x[j];
        state[dim * dim + i] += x[i];
      }
      state[dim * dim + dim] += 1.0f;
    }
  }
  static void settle(const FoundBasis& t, index_t dim, const HeadQueries&, float* state) { settle_basis(t, dim, state); }
};

template <>
struct RowTransform<Cpu, ChannelList> {
  static void forward(const ChannelList& t, const float* state, index_t dim, RowBlock<float> rows) {
    std::int32_t channel[max_head_dim] = {};
    channels(t, state, dim, channel);
    for (index_t r = 0; r < rows.rows; ++r) {
      float* x = rows.data + r * rows.step;
      for (index_t c = 0; c < t.kept; ++c) x[c] = x[channel[c]];
    }
  }
  static void backward(const ChannelList& t, const float* state, index_t dim, RowBlock<float> rows) {
    std::int32_t channel[max_head_dim] = {};
    channels(t, state, dim, channel);
    for (index_t r = 0; r < rows.rows; ++r) {
      float* x = rows.data + r * rows.step;
      index_t from = t.kept - 1;
      for (index_t c = dim - 1; c >= 0; --c) x[c] = from >= 0 && channel[from] == c ? x[from--] : 0.0f;
    }
  }
  static void query(const ChannelList& t, const float* state, index_t dim, RowBlock<float> rows) {
    forward(t, state, dim, rows);
  }

  /// state: energies of the channels [dim], room for those of the queries [dim].
  static void observe(const ChannelList&, index_t dim, RowBlock<float> rows, float* state) {
    for (index_t r = 0; r < rows.rows; ++r)
      for (index_t c = 0; c < dim; ++c) state[c] += ChannelList::energy(rows.data[r * rows.step + c]);
  }
  static void settle(const ChannelList& t, index_t dim, const HeadQueries& queries, float* state) {
    const index_t rows = queries.count > 0 ? queries.rows.extent[1] : 0;
    for (index_t h = queries.first; h < queries.first + queries.count; ++h)
      for (index_t i = t.first_query(rows); i < rows; ++i)
        for (index_t c = 0; c < dim; ++c) state[dim + c] += ChannelList::energy(queries.rows(h, i, c));
    settle_channels(t, dim, state);
  }
  static bool good_state(const ChannelList& t, index_t dim, const float* state) { return t.good_state(dim, state); }

 private:
  static void channels(const ChannelList& t, const float* state, index_t dim, std::int32_t* channel) {
    index_t n = 0;
    for (index_t c = 0; c < dim && n < t.kept; ++c)
      if (ChannelList::has(state, c)) channel[n++] = static_cast<std::int32_t>(c);
  }
};

}  // namespace kvcondense::prim
