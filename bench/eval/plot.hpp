#pragma once

#include <string>

#include <eval/result.hpp>

namespace eval {

/// A recipe without its fields, but for what says which form of a word it is: "ada(snapkv) + kivi4", "mx(fp4)".
std::string short_recipe(const std::string& recipe);

/// A chart of what recipes cost against what they keep, one labelled point each: KL where a model
/// was run, attention error otherwise. Plain SVG; the same results give the same bytes.
std::string plot_svg(const Results& results);

}  // namespace eval
