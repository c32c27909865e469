#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// A linear map of rows before they are coded: x' = T x is what a codec stores. Attention never undoes it
/// slot by slot: with q' = (T^-1)^t q the scores are q' . x', and sums of weighted values are mapped back once
/// per query. The description half: plain data and pure functions; the backend half is `RowTransform<B, T>`.
template <class T>
concept TransformDescription = requires(const T t, index_t dim) {
  { t.stored_dim(dim) } -> std::same_as<index_t>;     // numbers of a stored row, at most dim
  { t.valid(dim) } -> std::same_as<bool>;             // (dim): can rows of this size be mapped?
  { t.fingerprint() } -> std::same_as<std::int64_t>;  // differs when the same rows are stored otherwise
};

/// Rows are stored as they are.
struct NoTransform {
  constexpr index_t stored_dim(index_t dim) const { return dim; }
  constexpr bool valid(index_t) const { return true; }
  constexpr std::int64_t fingerprint() const { return 0; }
};

static_assert(TransformDescription<NoTransform>);

/// The queries of a step that read one KV head: [q_heads, tokens, dim], of them the heads [first, first + count).
struct HeadQueries {
  TensorView<const float, 3> rows{};
  index_t first = 0;
  index_t count = 0;
};

/// The backend half of a transform. A specialisation has these static members; rows are mapped in place.
///
///   forward(t, dim, RowBlock<float> rows)    rows x -> T x
///   backward(t, dim, RowBlock<float> rows)   rows T x -> x, or the nearest to it; also what sums of weighted
///                                            stored rows become
///   query(t, dim, RowBlock<float> rows)      rows q -> q' such that q' . (T x) = q . x
///
/// A transform that is found from data says `state_floats(dim) > 0`; the three then take `const float* state` behind t, and
///
///   observe(t, dim, RowBlock<const float> rows, float* state)    the rows that are coded first, in pieces; state
///                                                               begins as zeros
///   settle(t, dim, const HeadQueries&, float* state)             after them. From then on it never changes.
template <Backend B, class T>
struct RowTransform {
  static_assert(detail::always_false<B, T>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first, and map rows with a transform "
                "that this backend knows.");
};

constexpr std::int64_t mix_fingerprints(std::int64_t transform, std::int64_t codec) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(transform) * 0x9e3779b97f4a7c15u ^
                                   static_cast<std::uint64_t>(codec));
}

/// A codec behind a transform, as a quant stage names it.
template <TransformDescription T, CodecDescription C>
struct Transformed {
  T transform{};
  C codec{};

  std::size_t page_bytes(index_t slots, index_t dim) const { return codec.page_bytes(slots, transform.stored_dim(dim)); }
  index_t group_slots() const { return codec.group_slots(); }
  bool valid(index_t dim) const { return transform.valid(dim) && codec.valid(transform.stored_dim(dim)); }
  std::int64_t fingerprint() const { return mix_fingerprints(transform.fingerprint(), codec.fingerprint()); }
};

template <class T, class C>
Transformed(T, C) -> Transformed<T, C>;

/// What a codec of a quant stage is made of: a transform, which most have not, and what pages store.
template <class C>
struct CodecParts {
  using Transform = NoTransform;
  using Stored = C;
  static constexpr Transform transform(const C&) { return {}; }
  static constexpr const Stored& stored(const C& c) { return c; }
};
template <class T, class C>
struct CodecParts<Transformed<T, C>> {
  using Transform = T;
  using Stored = C;
  static constexpr const Transform& transform(const Transformed<T, C>& c) { return c.transform; }
  static constexpr const Stored& stored(const Transformed<T, C>& c) { return c.codec; }
};

/// Whether a transform is found from queries too.
template <TransformDescription T>
constexpr bool needs_queries(const T& transform) {
  if constexpr (requires { transform.needs_queries(); }) return transform.needs_queries();
  else return false;
}

/// Whether a codec maps rows before it stores them.
template <class C>
constexpr bool maps_rows(const C& codec) {
  const auto& t = CodecParts<C>::transform(codec);
  if constexpr (requires { t.identity(); }) return !t.identity();
  else return !std::same_as<std::remove_cvref_t<decltype(t)>, NoTransform>;
}

}  // namespace kvcondense::prim
