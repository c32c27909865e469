#pragma once

#include <cmath>
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
/// Where `stored_dim` is less than dim, x' is the first numbers of the row; rows have room for dim numbers.
///
/// A transform that says `centred()` sees rows without a mean, which is taken off before `forward` and put back behind
/// `backward`; scores get q . mean and sums of values their weights times the mean:
///
///   mean(t, dim) -> const float*             dim numbers
///
/// A transform that is found from data says `state_floats(dim) > 0`, the numbers it keeps, and maybe `finding_floats(dim)`,
/// those it needs while it is found; all of the above then take `const float* state` behind t, and
///
///   observe(t, dim, RowBlock<float> rows, float* state)     the rows that are coded first, in pieces, which it may use up;
///                                                           state begins as zeros
///   settle(t, dim, const HeadQueries&, float* state)        after them. From then on it never changes.
///   good_state(t, dim, const float* state) -> bool          whether numbers from a file can be one; all finite unless
///                                                           a transform says otherwise
template <Backend B, class T>
struct RowTransform {
  static_assert(detail::always_false<B, T>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first, and map rows with a transform "
                "that this backend knows.");
};

/// What a transform says of itself; those that say nothing are found from no data, look at no queries and centre nothing.
template <class T>
constexpr index_t floats_of(const T& t, index_t dim) {
  if constexpr (requires { t.state_floats(dim); }) return t.state_floats(dim);
  else return 0;
}
template <class T>
constexpr index_t finding_floats_of(const T& t, index_t dim) {
  if constexpr (requires { t.finding_floats(dim); }) return t.finding_floats(dim);
  else return floats_of(t, dim);
}
template <class T>
constexpr bool is_centred(const T& t) {
  if constexpr (requires { t.centred(); }) return t.centred();
  else return false;
}
template <class T>
constexpr bool leaves_rows(const T& t) {
  if constexpr (requires { t.identity(); }) return t.identity();
  else return std::same_as<T, NoTransform>;
}
/// Whether a transform is found from queries too.
template <TransformDescription T>
constexpr bool needs_queries(const T& transform) {
  if constexpr (requires { transform.needs_queries(); }) return transform.needs_queries();
  else return false;
}

constexpr std::int64_t mix_fingerprints(std::int64_t transform, std::int64_t codec) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(transform) * 0x9e3779b97f4a7c15u ^
                                   static_cast<std::uint64_t>(codec));
}

/// Calls a transform's map with the state it wants, or without.
template <Backend B, class T>
struct MapOf {
  using Map = RowTransform<B, T>;
  static constexpr bool found = requires(const T t, index_t dim) { t.state_floats(dim); };

  static void forward(const T& t, const float* state, index_t dim, RowBlock<float> rows) {
    if constexpr (found) Map::forward(t, state, dim, rows);
    else Map::forward(t, dim, rows);
  }
  static void backward(const T& t, const float* state, index_t dim, RowBlock<float> rows) {
    if constexpr (found) Map::backward(t, state, dim, rows);
    else Map::backward(t, dim, rows);
  }
  static void query(const T& t, const float* state, index_t dim, RowBlock<float> rows) {
    if constexpr (found) Map::query(t, state, dim, rows);
    else Map::query(t, dim, rows);
  }
  static void observe(const T& t, index_t dim, RowBlock<float> rows, float* state) {
    if constexpr (found) Map::observe(t, dim, rows, state);
  }
  static void settle(const T& t, index_t dim, const HeadQueries& queries, float* state) {
    if constexpr (found) Map::settle(t, dim, queries, state);
  }
  /// Null: the transform centres nothing.
  static const float* mean(const T& t, const float* state, index_t dim) {
    if constexpr (requires { Map::mean(t, state, dim); }) return Map::mean(t, state, dim);
    else if constexpr (requires { Map::mean(t, dim); }) return Map::mean(t, dim);
    else return nullptr;
  }
  static bool good_state(const T& t, index_t dim, const float* state) {
    if constexpr (requires { Map::good_state(t, dim, state); }) return Map::good_state(t, dim, state);
    for (index_t i = 0; i < floats_of(t, dim); ++i)
      if (!std::isfinite(state[i])) return false;
    return true;
  }
};

/// One transform behind another; the second maps what the first stores. One of them may be found from data, and only the
/// first one centred or from queries.
template <TransformDescription First, TransformDescription Second>
struct Chained {
  First first{};
  Second second{};

  constexpr bool identity() const { return leaves_rows(first) && leaves_rows(second); }
  constexpr index_t stored_dim(index_t dim) const { return second.stored_dim(first.stored_dim(dim)); }
  constexpr bool valid(index_t dim) const { return first.valid(dim) && second.valid(first.stored_dim(dim)) && sane(dim); }
  /// Of both; one that leaves rows as they are says nothing.
  constexpr std::int64_t fingerprint() const {
    if (leaves_rows(first)) return second.fingerprint();
    return leaves_rows(second) ? first.fingerprint() : mix_fingerprints(first.fingerprint(), second.fingerprint());
  }
  constexpr bool centred() const { return is_centred(first) || is_centred(second); }
  constexpr index_t state_floats(index_t dim) const {
    return floats_of(first, dim) + floats_of(second, first.stored_dim(dim));
  }
  constexpr index_t finding_floats(index_t dim) const {
    return finding_floats_of(first, dim) + finding_floats_of(second, first.stored_dim(dim));
  }
  constexpr bool needs_queries() const { return prim::needs_queries(first) || prim::needs_queries(second); }

 private:
  constexpr bool sane(index_t dim) const {
    const bool both = floats_of(first, dim) > 0 && floats_of(second, first.stored_dim(dim)) > 0;
    return !both && (leaves_rows(first) || (!is_centred(second) && !prim::needs_queries(second)));
  }
};

template <class F, class S>
Chained(F, S) -> Chained<F, S>;

/// A codec behind a transform, as a quant stage names it.
template <TransformDescription T, CodecDescription C>
struct Transformed {
  T transform{};
  C codec{};

  std::size_t page_bytes(index_t slots, index_t dim) const { return codec.page_bytes(slots, transform.stored_dim(dim)); }
  index_t group_slots() const { return codec.group_slots(); }
  bool valid(index_t dim) const { return transform.valid(dim) && codec.valid(transform.stored_dim(dim)); }
  /// A transform that leaves rows as they are says nothing.
  std::int64_t fingerprint() const { return leaves_rows(transform) ? codec.fingerprint() : mix_fingerprints(transform.fingerprint(), codec.fingerprint()); }
};

template <class T, class C>
Transformed(T, C) -> Transformed<T, C>;

/// A codec, whatever it is, behind one more transform, which maps rows first.
template <class T, class C>
constexpr auto behind(const T& transform, const C& codec) {
  if constexpr (std::same_as<T, NoTransform>) return codec;
  else if constexpr (requires { codec.behind(transform); }) return codec.behind(transform);
  else return Transformed<T, C>{transform, codec};
}
template <class T, class U, class C>
constexpr auto behind(const T& transform, const Transformed<U, C>& inner) {
  if constexpr (std::same_as<T, NoTransform>) return inner;
  else return Transformed<Chained<T, U>, C>{{transform, inner.transform}, inner.codec};
}

/// What a codec of a quant stage is made of: a transform, which most have not, and what pages store.
template <class C>
struct CodecParts {
  using Transform = NoTransform;
  using Stored = C;
  static constexpr Transform transform(const C&) { return {}; }
  static constexpr const Stored& stored(const C& c) { return c; }
};
/// The parts of a codec that turns rows before it codes them.
template <class T, class C>
struct CodecParts<Transformed<T, C>> {
  using Transform = T;
  using Stored = C;
  static constexpr const Transform& transform(const Transformed<T, C>& c) { return c.transform; }
  static constexpr const Stored& stored(const Transformed<T, C>& c) { return c.codec; }
};

/// Whether a codec maps rows before it stores them.
template <class C>
constexpr bool maps_rows(const C& codec) {
  return !leaves_rows(CodecParts<C>::transform(codec));
}

}  // namespace kvcondense::prim
