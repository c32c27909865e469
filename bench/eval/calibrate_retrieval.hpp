#pragma once

#include <eval/calibrate.hpp>
#include <eval/calibrate_arrays.hpp>

namespace eval {

/// Principal directions of a head's keys, for loki. Throws Error, as all of these.
HeadArrays head_key_axes(const HeadOfTexts& of, const Calibration& how, std::uint64_t seed);
/// Right singular vectors of the queries that read a head, for infinigen.
HeadArrays head_query_axes(const HeadOfTexts& of, const Calibration& how, std::uint64_t seed);
HeadArrays head_query_filters(const HeadOfTexts& of, const Calibration& how, std::uint64_t seed);
/// Centroids of a head's raw keys and the metric that queries at one distance make, for a2ats.
HeadArrays head_key_codes(const HeadOfTexts& of, const Calibration& how, std::uint64_t seed);

/// Random planes, for magicpig: of the model only its size of a head counts. Prints how likely a key is read.
Calibrated draw_planes(const Options& options);

}  // namespace eval
