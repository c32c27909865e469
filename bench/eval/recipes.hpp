#pragma once

#include <eval/evaluate_model.hpp>
#include <eval/facts.hpp>

namespace eval {

/// What everything else is compared with.
inline constexpr const char* full_recipe = "keep_all";

/// What recorded queries, keys and values can give to steps; the rest takes the model at every step.
inline constexpr kvcondense::Inputs recorded = kvcondense::Input::attention | kvcondense::Input::queries |
                                               kvcondense::Input::projections | kvcondense::Input::moments;

/// What its tokens are, and how well it foresaw them, a running model says too.
kvcondense::Inputs given_by(const engine::ModelConfig& model);

/// Whether a recipe can be driven by what was recorded.
bool replays(const RecipeSpec& recipe);

/// Whether one of the recipes looks at rows before rotation.
bool wants_raw(const std::vector<RecipeSpec>& recipes);

/// What the options and a model or a dump say of the model.
Facts facts_of(const Options& options, const ModelTask& task);
Facts facts_of(const Options& options, const Recording& recording);

/// Reads a recipe. `given`: what steps may look at; `with_model`: a model runs that can repeat its context. Throws
/// Error where the text is at fault, Refused where it is well written and cannot run here.
RecipeSpec read_for(const std::string& text, const CacheShape& shape, const Facts& facts, kvcondense::Inputs given,
                    bool with_model);

}  // namespace eval
