#pragma once

#include <string>

#include <eval/suite.hpp>
#include <nlohmann/json.hpp>

namespace eval {

/// Every number of a suite; docs/evaluation.md describes the fields.
nlohmann::ordered_json suite_json(const SuiteResults& results);

/// The same as tables: what was run, one row per recipe, and what did not run. `pictures`: files of `suite_pictures` beside it.
std::string suite_markdown(const SuiteResults& results, const std::vector<std::string>& pictures);

}  // namespace eval
