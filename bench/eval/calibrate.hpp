#pragma once

#include <string>

#include <eval/bases_file.hpp>
#include <eval/options.hpp>

namespace eval {

/// Bases of a model, or other arrays, and what was found on the way.
struct Calibrated {
  MethodBases bases;
  std::string text;  ///< a table: energies, ranks, losses
};

/// Makes bases or arrays for the stage that the options name, from q, k and v of windows of a text and from the weights.
/// Throws Error.
Calibrated calibrate(const Options& options);

}  // namespace eval
