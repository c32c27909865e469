#pragma once

#include <eval/result.hpp>
#include <nlohmann/json.hpp>

namespace eval {

/// Every number of an evaluation; docs/evaluation.md describes the fields.
nlohmann::ordered_json to_json(const Results& results);

}  // namespace eval
