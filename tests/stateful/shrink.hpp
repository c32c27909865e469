#pragma once

#include <algorithm>
#include <vector>

#include <stateful/program.hpp>

namespace kvcondense::test {

/// A short program that still fails: calls, then stages of the recipe are left out, then numbers made small, as long as
/// `fails` says so. Each round costs one run per part; rounds end when nothing can go.
template <class Fails>
Program shrink(Program program, Fails&& fails) {
  const auto take = [&](Program smaller) {
    if (!fails(smaller)) return false;
    program = std::move(smaller);
    return true;
  };
  // Halves, quarters, ... single calls; again, until no single call can go.
  for (std::size_t part = std::max<std::size_t>(program.calls.size() / 2, 1);;) {
    bool went = false;
    for (std::size_t at = 0; at < program.calls.size();) {
      Program smaller = program;
      const auto first = smaller.calls.begin() + static_cast<std::ptrdiff_t>(at);
      smaller.calls.erase(first, first + static_cast<std::ptrdiff_t>(std::min(part, smaller.calls.size() - at)));
      if (take(std::move(smaller))) went = true;
      else at += part;
    }
    if (part == 1 && !went) break;
    part = std::max<std::size_t>(part / 2, 1);
  }
  for (std::size_t i = 0; i < program.stages.size();) {
    Program smaller = program;
    smaller.stages.erase(smaller.stages.begin() + static_cast<std::ptrdiff_t>(i));
    if (!take(std::move(smaller))) ++i;
  }
  for (std::size_t i = 0; i < program.calls.size(); ++i)
    for (std::uint16_t Call::* number : {&Call::a, &Call::b})
      for (std::uint16_t step = 32768; step > 0; step /= 2) {
        Program smaller = program;
        if (smaller.calls[i].*number < step) continue;
        smaller.calls[i].*number = static_cast<std::uint16_t>(smaller.calls[i].*number - step);
        take(std::move(smaller));
      }
  return program;
}

}  // namespace kvcondense::test
