#pragma once

#include <type_traits>

#include <kvcondense/any/inline_value.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::any {

namespace detail {

using TransformRoom = InlineValue<40>;

/// What can be done with a stored transform; one constant table per transform.
struct TransformTable {
  index_t (*stored_dim)(const TransformRoom&, index_t dim);
  bool (*valid)(const TransformRoom&, index_t dim);
  std::int64_t (*fingerprint)(const TransformRoom&);
  index_t (*state_floats)(const TransformRoom&, index_t dim);
  index_t (*finding_floats)(const TransformRoom&, index_t dim);
  bool (*needs_queries)(const TransformRoom&);
  bool (*centred)(const TransformRoom&);
  const float* (*mean)(const TransformRoom&, const float* state, index_t dim);
  void (*forward)(const TransformRoom&, const float* state, index_t dim, prim::RowBlock<float>);
  void (*backward)(const TransformRoom&, const float* state, index_t dim, prim::RowBlock<float>);
  void (*query)(const TransformRoom&, const float* state, index_t dim, prim::RowBlock<float>);
  void (*observe)(const TransformRoom&, index_t dim, prim::RowBlock<float>, float* state);
  void (*settle)(const TransformRoom&, index_t dim, const prim::HeadQueries&, float* state);
  bool (*good_state)(const TransformRoom&, index_t dim, const float* state);
};

template <class T>
struct TransformCalls {
  using Map = prim::MapOf<Cpu, T>;
  using Rows = prim::RowBlock<float>;

  static index_t stored_dim(const TransformRoom& t, index_t dim) { return t.as<T>().stored_dim(dim); }
  static bool valid(const TransformRoom& t, index_t dim) { return t.as<T>().valid(dim); }
  static std::int64_t fingerprint(const TransformRoom& t) { return t.as<T>().fingerprint(); }
  static index_t state_floats(const TransformRoom& t, index_t dim) { return prim::floats_of(t.as<T>(), dim); }
  static index_t finding_floats(const TransformRoom& t, index_t dim) { return prim::finding_floats_of(t.as<T>(), dim); }
  static bool needs_queries(const TransformRoom& t) { return prim::needs_queries(t.as<T>()); }
  static bool centred(const TransformRoom& t) { return prim::is_centred(t.as<T>()); }
  static const float* mean(const TransformRoom& t, const float* state, index_t dim) { return Map::mean(t.as<T>(), state, dim); }
  static void forward(const TransformRoom& t, const float* state, index_t dim, Rows rows) {
    Map::forward(t.as<T>(), state, dim, rows);
  }
  static void backward(const TransformRoom& t, const float* state, index_t dim, Rows rows) {
    Map::backward(t.as<T>(), state, dim, rows);
  }
  static void query(const TransformRoom& t, const float* state, index_t dim, Rows rows) {
    Map::query(t.as<T>(), state, dim, rows);
  }
  static void observe(const TransformRoom& t, index_t dim, Rows rows, float* state) {
    Map::observe(t.as<T>(), dim, rows, state);
  }
  static void settle(const TransformRoom& t, index_t dim, const prim::HeadQueries& queries, float* state) {
    Map::settle(t.as<T>(), dim, queries, state);
  }
  static bool good_state(const TransformRoom& t, index_t dim, const float* state) {
    return Map::good_state(t.as<T>(), dim, state);
  }

  static constexpr TransformTable table{stored_dim, valid,   fingerprint, state_floats, finding_floats, needs_queries, centred,
                                        mean,       forward, backward,    query,        observe,        settle,        good_state};
};

}  // namespace detail

/// Any transform as a value; of itself none.
///
/// Needs    a trivially copyable transform of at most 40 bytes whose RowTransform<Cpu, T> is visible.
class AnyTransform {
 public:
  AnyTransform() = default;
  template <prim::TransformDescription T>
  requires(!std::same_as<T, AnyTransform>) explicit AnyTransform(const T& transform) {
    if constexpr (requires { transform.identity(); })
      if (transform.identity()) return;
    room_ = detail::TransformRoom(transform), table_ = &detail::TransformCalls<T>::table;
  }

  bool identity() const { return table_ == nullptr; }
  index_t state_floats(index_t dim) const { return identity() ? 0 : table_->state_floats(room_, dim); }
  index_t finding_floats(index_t dim) const { return identity() ? 0 : table_->finding_floats(room_, dim); }
  bool centred() const { return !identity() && table_->centred(room_); }
  bool needs_queries() const { return !identity() && table_->needs_queries(room_); }
  index_t stored_dim(index_t dim) const { return identity() ? dim : table_->stored_dim(room_, dim); }
  bool valid(index_t dim) const { return identity() || table_->valid(room_, dim); }
  std::int64_t fingerprint() const { return identity() ? 0 : table_->fingerprint(room_); }

 private:
  friend struct prim::RowTransform<Cpu, AnyTransform>;

  detail::TransformRoom room_;
  const detail::TransformTable* table_ = nullptr;
};

static_assert(prim::TransformDescription<AnyTransform> && std::is_trivially_copyable_v<AnyTransform>);

}  // namespace kvcondense::any

namespace kvcondense::prim {

/// Hands each call to the transform inside.
template <>
struct RowTransform<Cpu, any::AnyTransform> {
  using Any = any::AnyTransform;

  static const float* mean(const Any& t, const float* state, index_t dim) {
    return t.identity() ? nullptr : t.table_->mean(t.room_, state, dim);
  }
  static void forward(const Any& t, const float* state, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) t.table_->forward(t.room_, state, dim, rows);
  }
  static void backward(const Any& t, const float* state, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) t.table_->backward(t.room_, state, dim, rows);
  }
  static void query(const Any& t, const float* state, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) t.table_->query(t.room_, state, dim, rows);
  }
  static void observe(const Any& t, index_t dim, RowBlock<float> rows, float* state) {
    if (!t.identity()) t.table_->observe(t.room_, dim, rows, state);
  }
  static void settle(const Any& t, index_t dim, const HeadQueries& queries, float* state) {
    if (!t.identity()) t.table_->settle(t.room_, dim, queries, state);
  }
  static bool good_state(const Any& t, index_t dim, const float* state) {
    return t.identity() || t.table_->good_state(t.room_, dim, state);
  }
};

}  // namespace kvcondense::prim
