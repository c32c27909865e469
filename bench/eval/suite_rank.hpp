#pragma once

#include <functional>
#include <vector>

#include <eval/suite.hpp>

namespace eval {

/// How far predictions move (KL), or attention where there is a dump; less is better.
double error_of(const SuiteResults& results, const SuiteRow& row);
bool has_error(const SuiteResults& results, const SuiteRow& row);

/// Of all that was asked, the part found: the mean of needles, requests, turns, plan and written model, those that ran.
double recall_of(const SuiteRow& row);
bool has_recall(const SuiteRow& row);

using Rows = std::vector<const SuiteRow*>;

/// What is lost by a row: less is better.
using Loss = std::function<double(const SuiteRow&)>;

/// Of `rows` those that none of fewer bytes is as good as, by bytes upwards.
Rows front_of(Rows rows, const Loss& loss);

}  // namespace eval
