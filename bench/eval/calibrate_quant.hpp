#pragma once

#include <string>

#include <eval/calibrate_arrays.hpp>

namespace eval {

/// Books of codewords of one head, for commvq, and of the rows that they are found from the part of the squares that codes
/// lose. Throws Error.
HeadArrays head_books(const HeadOfTexts& of, const Calibration& how, std::uint64_t seed);

/// Maps from layer to layer, for aquakv; returns a table of what they leave and what codes lose. Throws Error.
std::string put_layer_maps(const Texts& texts, MethodBases& to);

}  // namespace eval
