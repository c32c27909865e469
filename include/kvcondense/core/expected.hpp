#pragma once

#include <cassert>
#include <concepts>
#include <optional>
#include <utility>

#include <kvcondense/core/status.hpp>

namespace kvcondense {

/// A value, or the reason why there is none. Only makers and loaders return it.
///
/// Works without exceptions: `operator*` on an empty object is a programming error and is asserted.
template <class T>
class [[nodiscard]] Expected {
 public:
  // Two rather than one by value: to return a local by that one nvcc wants a copy.
  Expected(T&& value) : value_(std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Expected(const T& value) requires std::copy_constructible<T> : value_(value) {}  // NOLINT(google-explicit-constructor)
  Expected(Status why) : status_(why) {            // NOLINT(google-explicit-constructor)
    assert(why != Status::ok && "an empty Expected needs a reason");
  }

  explicit operator bool() const { return value_.has_value(); }
  bool has_value() const { return value_.has_value(); }
  Status status() const { return value_ ? Status::ok : status_; }

  T& operator*() & { return assert(value_), *value_; }
  const T& operator*() const& { return assert(value_), *value_; }
  T&& operator*() && { return assert(value_), std::move(*value_); }
  T* operator->() { return assert(value_), &*value_; }
  const T* operator->() const { return assert(value_), &*value_; }

 private:
  std::optional<T> value_;
  Status status_ = Status::ok;
};

}  // namespace kvcondense
