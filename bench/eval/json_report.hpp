#pragma once

#include <eval/result.hpp>
#include <nlohmann/json.hpp>

namespace eval {

/// Every number of an evaluation; docs/evaluation.md describes the fields.
nlohmann::ordered_json to_json(const Results& results);

/// Its parts: what every report begins with, what was run, and one recipe.
nlohmann::ordered_json report_head();
nlohmann::ordered_json to_json(const Setting& setting);
nlohmann::ordered_json to_json(const Setting& setting, const RecipeResult& recipe);

}  // namespace eval
