#pragma once

#include <span>
#include <string_view>

#include <kvcondense/core/policy.hpp>

namespace kvcondense::any {

class Registry;

/// One method that stands beside a cache (rooms reuse, storage, cost, masks of prompts, shared heads), as docs and tools list it: a program
/// includes its header, no recipe names it.
struct Tool {
  std::string_view word;
  Stage room = Stage::storage;
  std::string_view summary;  ///< one sentence
  std::string_view source;
  std::string_view backends = "cpu";
};

/// Of a struct with an `about`.
template <Described T>
constexpr Tool tool(std::string_view summary, std::string_view backends = "cpu") {
  return {T::about.word, T::about.stage, summary, T::about.source, backends};
}

/// All of the library. A new one is one line in src/any/tools.cpp.
std::span<const Tool> tools();

/// By word. Null: unknown.
const Tool* find_tool(std::string_view word);

/// The word, an alias too, that a person most likely meant who wrote one that nobody has. Empty:
/// none is near.
std::string_view nearest_word(std::string_view word, const Registry& words,
                              std::span<const Tool> beside = {});

}  // namespace kvcondense::any
