#pragma once

#include <eval/heads_file.hpp>
#include <eval/options.hpp>
#include <eval/recording.hpp>

namespace eval {

/// Finds, from recorded keys and values, thresholds and levels (kvquant), groups of channels (skvq) and bits of heads by
/// the errors that each width makes in the outputs of the newest queries (bit_allocation). Throws Error.
void add_quant_tables(const Recording& recording, const QuantProbe& how, HeadsFile& to);

}  // namespace eval
