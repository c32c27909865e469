#pragma once

#include <optional>
#include <random>
#include <string>
#include <vector>

#include <support/cache_model.hpp>

namespace kvcondense::test {

/// A cache and what is done with it: a recipe, one of a few shapes, numbers to fill it with, calls.
struct Program {
  std::vector<std::string> stages;
  std::size_t shape = 0;
  std::uint32_t seed = 0;
  double most_error = 0.0025, attend_error = 0.0;  ///< of a stored number, of outputs
  std::vector<Call> calls;

  std::string recipe() const;
};

/// A random recipe that a cache of its shape takes, from the settings of all words, and random calls.
Program random_program(std::mt19937& random);

/// What broke, and the calls up to there; nothing where all went as the twin says. A recipe that no cache takes breaks nothing.
std::optional<std::string> broken(const Program& program);

/// What that program is, to type it again.
std::string described(const Program& program);

}  // namespace kvcondense::test
