#pragma once

#include <string>

namespace eval {

/// What times were measured on: a time without it says nothing.
struct Host {
  std::string processor;  ///< as the system names it
  std::string compiler;
  bool optimized = false;
};

Host this_host();

/// The same in one line.
std::string host_line();

}  // namespace eval
