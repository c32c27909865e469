#pragma once

#include <functional>
#include <vector>

#include <eval/suite.hpp>

namespace eval {

/// How far predictions move (KL), or attention where there is a dump; less is better.
double error_of(const SuiteResults& results, const SuiteRow& row);
bool has_error(const SuiteResults& results, const SuiteRow& row);

/// Of all that was asked of the model, the part found: the mean of needles, requests, turns and plan, those that ran.
double recall_of(const SuiteRow& row);
bool has_recall(const SuiteRow& row);

/// Whether it was asked all that the full cache was, predictions too: only then it may be called better than another. The written
/// model does not count: what recipes know of the model does not hold there.
bool was_asked_all(const SuiteResults& results, const SuiteRow& row);

using Rows = std::vector<const SuiteRow*>;

/// What is lost by a row: less is better.
using Loss = std::function<double(const SuiteRow&)>;

/// Of `rows` those that none of fewer bytes is as good as, by bytes upwards.
Rows front_of(Rows rows, const Loss& loss);

}  // namespace eval
