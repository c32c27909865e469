#pragma once

#include <cassert>
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
  Expected(T value) : value_(std::move(value)) {}  // NOLINT(google-explicit-constructor)
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
