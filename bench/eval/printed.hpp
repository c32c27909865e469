#pragma once

#include <cstdio>
#include <string>

namespace eval {

/// What printf prints, up to 511 characters of it.
template <class... T>
std::string printed(const char* format, T... values) {
  char buffer[512];
  std::snprintf(buffer, sizeof buffer, format, values...);
  return buffer;
}

}  // namespace eval
