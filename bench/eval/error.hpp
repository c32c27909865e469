#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include <kvcondense/core/status.hpp>

namespace eval {

/// What a user did wrong or a file does not hold, in one line. Caught in main(), which ends with 2.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A recipe that is well written, and that this cache, model or dump does not suit.
class Refused : public Error {
 public:
  using Error::Error;
};

/// Throws unless `s` is ok: "<what>: <name of the status>".
inline void require(kvcondense::Status s, std::string_view what) {
  if (s != kvcondense::Status::ok) throw Error(std::string(what) + ": " + kvcondense::to_string(s));
}

}  // namespace eval
