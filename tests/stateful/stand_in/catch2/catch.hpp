#pragma once

#include <stdexcept>
#include <string>

/// What the naive twin asks of Catch2, for programs that go on after a broken demand: it is thrown, to be caught.
namespace kvcondense::test {

struct Broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void demand(bool kept, const char* what, const char* file, int line) {
  if (!kept) throw Broken(std::string(what) + " (" + file + ":" + std::to_string(line) + ")");
}

}  // namespace kvcondense::test

#define REQUIRE(...) ::kvcondense::test::demand(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)
#define REQUIRE_FALSE(...) ::kvcondense::test::demand(!static_cast<bool>(__VA_ARGS__), "not " #__VA_ARGS__, __FILE__, __LINE__)
#define INFO(...) static_cast<void>(0)
#define CAPTURE(...) static_cast<void>(0)
