#pragma once

#include <string>
#include <vector>

#include <eval/result.hpp>

namespace eval {

/// A number as a table shows it: `digits` significant ones, never an exponent above 1e-4.
std::string short_number(double value, int digits);

/// Columns padded to their widest cell, the first to the left, others to the right.
std::string aligned(const std::vector<std::vector<std::string>>& rows);
/// Every column to the left.
std::string aligned_left(const std::vector<std::vector<std::string>>& rows);

/// What was measured, how and on what, in a few lines.
std::string heading(const Results& results);

/// One row per recipe.
std::string table(const Results& results);

/// What each column of the table says, one line each.
std::string legend(const Results& results);

}  // namespace eval
