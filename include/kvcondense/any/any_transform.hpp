#pragma once

#include <type_traits>

#include <kvcondense/any/inline_value.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::any {

namespace detail {

using TransformRoom = InlineValue<24>;

/// What can be done with a stored transform; one constant table per transform.
struct TransformTable {
  index_t (*stored_dim)(const TransformRoom&, index_t dim);
  bool (*valid)(const TransformRoom&, index_t dim);
  std::int64_t (*fingerprint)(const TransformRoom&);
  void (*forward)(const TransformRoom&, index_t dim, prim::RowBlock<float>);
  void (*backward)(const TransformRoom&, index_t dim, prim::RowBlock<float>);
  void (*query)(const TransformRoom&, index_t dim, prim::RowBlock<float>);
};

template <class T>
struct TransformCalls {
  using Map = prim::RowTransform<Cpu, T>;
  using Rows = prim::RowBlock<float>;

  static index_t stored_dim(const TransformRoom& t, index_t dim) { return t.as<T>().stored_dim(dim); }
  static bool valid(const TransformRoom& t, index_t dim) { return t.as<T>().valid(dim); }
  static std::int64_t fingerprint(const TransformRoom& t) { return t.as<T>().fingerprint(); }
  static void forward(const TransformRoom& t, index_t dim, Rows rows) { Map::forward(t.as<T>(), dim, rows); }
  static void backward(const TransformRoom& t, index_t dim, Rows rows) { Map::backward(t.as<T>(), dim, rows); }
  static void query(const TransformRoom& t, index_t dim, Rows rows) { Map::query(t.as<T>(), dim, rows); }

  static constexpr TransformTable table{stored_dim, valid, fingerprint, forward, backward, query};
};

}  // namespace detail

/// Any transform as a value; of itself none.
///
/// Needs    a trivially copyable transform of at most 24 bytes whose RowTransform<Cpu, T> is visible.
class AnyTransform {
 public:
  AnyTransform() = default;
  template <prim::TransformDescription T>
  requires(!std::same_as<T, AnyTransform>) explicit AnyTransform(const T& transform)
      : room_(transform), table_(&detail::TransformCalls<T>::table) {}

  bool identity() const { return table_ == nullptr; }
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
  static void forward(const any::AnyTransform& t, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) t.table_->forward(t.room_, dim, rows);
  }
  static void backward(const any::AnyTransform& t, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) t.table_->backward(t.room_, dim, rows);
  }
  static void query(const any::AnyTransform& t, index_t dim, RowBlock<float> rows) {
    if (!t.identity()) t.table_->query(t.room_, dim, rows);
  }
};

}  // namespace kvcondense::prim
