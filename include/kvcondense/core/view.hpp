#pragma once

#include <concepts>
#include <type_traits>

#include <kvcondense/core/config.hpp>

namespace kvcondense {

/// A borrowed block of numbers with extents and strides (in elements). Plain arrays inside, so that
/// kernels may index it; never owns, never checks: callers check extents once, at the border.
template <class T, int Rank>
struct TensorView {
  static_assert(Rank >= 1 && Rank <= 4, "kvcondense: a TensorView has one to four dimensions.");

  T* data = nullptr;
  index_t extent[Rank] = {};
  index_t stride[Rank] = {};

  template <class... I>
  KVCONDENSE_HD T& operator()(I... i) const {
    static_assert(sizeof...(I) == Rank, "kvcondense: a TensorView needs one index per dimension.");
    const index_t at[Rank] = {static_cast<index_t>(i)...};
    index_t offset = 0;
    for (int r = 0; r < Rank; ++r) offset += at[r] * stride[r];
    return data[offset];
  }

  KVCONDENSE_HD index_t size() const {
    index_t n = 1;
    for (int r = 0; r < Rank; ++r) n *= extent[r];
    return n;
  }

  /// A view of numbers is also a view of constants.
  template <std::same_as<const T> C>
    requires(!std::is_const_v<T>)
  KVCONDENSE_HD operator TensorView<C, Rank>() const {  // NOLINT(google-explicit-constructor)
    TensorView<C, Rank> v;
    v.data = data;
    for (int r = 0; r < Rank; ++r) {
      v.extent[r] = extent[r];
      v.stride[r] = stride[r];
    }
    return v;
  }
};

/// The tokens [first, end) of rows [heads, tokens, ...].
template <class T, int Rank>
KVCONDENSE_HD constexpr TensorView<T, Rank> tokens_of(TensorView<T, Rank> rows, index_t first, index_t end) {
  static_assert(Rank >= 2, "kvcondense: rows of tokens have two dimensions or more.");
  rows.data += first * rows.stride[1];
  rows.extent[1] = end - first;
  return rows;
}

/// Row-major dense view: the last dimension is contiguous.
template <class T, class... E>
KVCONDENSE_HD constexpr auto dense_view(T* data, E... extents) {
  constexpr int rank = static_cast<int>(sizeof...(E));
  TensorView<T, rank> v;
  v.data = data;
  const index_t e[rank] = {static_cast<index_t>(extents)...};
  index_t step = 1;
  for (int r = rank - 1; r >= 0; --r) {
    v.extent[r] = e[r];
    v.stride[r] = step;
    step *= e[r];
  }
  return v;
}

/// Keys and values of one layer: [kv_heads, tokens, head_dim] and [kv_heads, tokens, value_dim].
template <class T>
struct KvView {
  TensorView<T, 3> keys;
  TensorView<T, 3> values;
};

/// Numbers per (kv head, slot) where every head may hold a different number of slots.
///
/// Head h owns `data[offset[h] .. offset[h + 1])`; `offset` has heads + 1 entries. The layout that
/// variable-length attention kernels call cumulative lengths. With `rows`, which lanes and scores alone may have, a row
/// lies where that says: only `row` finds it, and `data` is null.
template <class T>
struct RaggedView {
  T* data = nullptr;
  const index_t* offset = nullptr;
  index_t heads = 0;
  T* const* rows = nullptr;

  KVCONDENSE_HD T* row(index_t head) const { return rows == nullptr ? data + offset[head] : rows[head]; }
  KVCONDENSE_HD index_t length(index_t head) const { return offset[head + 1] - offset[head]; }
  KVCONDENSE_HD index_t size() const { return heads == 0 ? 0 : offset[heads] - offset[0]; }

  template <std::same_as<const T> C>
    requires(!std::is_const_v<T>)
  KVCONDENSE_HD operator RaggedView<C>() const {  // NOLINT(google-explicit-constructor)
    return {data, offset, heads, rows};
  }
};

}  // namespace kvcondense
