#pragma once

#include <string>
#include <vector>

#include <eval/suite.hpp>
#include <nlohmann/json.hpp>

namespace eval {

/// What `suite_json` wrote, as far as tables and pictures want it. Throws Error, which names the file.
SuiteResults read_suite(const nlohmann::ordered_json& json, const std::string& name);

/// Several runs as one: of the same model, text and tasks, each of other recipes or shares. What stands in several is taken from the
/// first, the full cache for one. Throws Error where they cannot be compared.
SuiteResults join_suites(const std::vector<SuiteResults>& parts, const std::vector<std::string>& names);

/// Reads and joins files.
SuiteResults join_suite_files(const std::vector<std::string>& files);

}  // namespace eval
