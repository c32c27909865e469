#pragma once

#include <kvcondense/core/config.hpp>

namespace kvcondense::retrieve {

/// Schedule: every call chooses anew.
struct EveryCall {
  constexpr double choosing() const { return 1.0; }
  constexpr bool keeps() const { return false; }
  constexpr bool due(index_t, index_t) const { return true; }
  constexpr bool at_prompt_end() const { return false; }
};

/// Schedule: chooses when the length before a step is a multiple of `tokens`, and reads those units until the next time.
struct EveryTokens {
  index_t tokens = 4;

  constexpr double choosing() const { return tokens > 1 ? 1.0 / static_cast<double>(tokens) : 1.0; }
  constexpr bool keeps() const { return tokens > 1; }
  constexpr bool due(index_t seen, index_t arrived) const {
    // A call of several tokens chooses when any of them would have.
    return tokens <= 1 || (seen - 1) / tokens * tokens >= seen - arrived;
  }
  constexpr bool at_prompt_end() const { return false; }
};

/// Schedule: chooses when a prompt ends, by its last query, and reads those units until asked to choose anew.
struct WhenAsked {
  constexpr double choosing() const { return 0.0; }
  constexpr bool keeps() const { return true; }
  constexpr bool due(index_t, index_t) const { return false; }
  constexpr bool at_prompt_end() const { return true; }
};

/// Schedule: a call of several tokens is a question and chooses; single tokens go on reading what it chose.
struct EveryQuestion {
  constexpr double choosing() const { return 0.0; }
  constexpr bool keeps() const { return true; }
  constexpr bool due(index_t, index_t arrived) const { return arrived > 1; }
  constexpr bool at_prompt_end() const { return false; }
};

}  // namespace kvcondense::retrieve
