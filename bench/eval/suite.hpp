#pragma once

#include <string>
#include <vector>

#include <eval/evaluate.hpp>
#include <eval/suite_run.hpp>

namespace eval {

/// Recall of single values: how long the document was, and where in it the value stood.
struct NeedleGrid {
  std::vector<std::vector<Counts>> cells;  ///< [length][depth]

  Counts all() const;
};

/// One recipe at one share of memory, and all that was asked of it.
struct SuiteRow {
  std::string line;       ///< the recipe as given, holes and all
  std::string family;     ///< as given, or the rooms of its stages
  double share = 0;       ///< percent that its holes were sized for; 0: it has none
  std::string setting;    ///< what went into them
  std::string note;       ///< where its largest setting leaves room
  RecipeResult result;    ///< text, attention, bytes, speed
  NeedleGrid needles;
  LifeCycle life;
  LongAnswer plan;
  Continuation continuation;
  InductionCounts induction;
  double prompt_seconds = 0, save_seconds = 0, load_seconds = 0;  ///< of a document; 0: not timed
  std::vector<std::string> failures;  ///< tasks that it could not do, and why
  std::string written;                ///< its JSON, of an earlier run; empty: of this one
};

/// A recipe that did not run, and why.
struct LeftOut {
  std::string line;
  double share = 0;
  std::string why;
};

struct SuiteResults {
  Setting setting;
  SuiteRequest request;
  std::vector<index_t> lengths;  ///< of the needle grid
  std::vector<SuiteRow> rows;    ///< the full cache first
  std::vector<LeftOut> left_out;
  double seconds = 0;
  std::string head;  ///< JSON of an earlier run: what it was made by and on; empty: by this program

  bool has_model() const { return setting.has_text(); }
};

/// A line of a file of recipes: "family: recipe", or a recipe.
struct RecipeLine {
  std::string family, recipe;
};

/// Recipes of a text, one a line; '#' begins a comment. Throws Error with the line at fault.
std::vector<RecipeLine> parse_recipe_lines(const std::string& text, const std::string& name);
RecipeLine recipe_line(const std::string& text);

/// The rooms of a recipe's stages: "evict", "evict + quant".
std::string rooms_of(const std::string& recipe);

/// Runs the suite. Throws Error; a recipe that cannot run, or cannot do a task, is left out and named. The same options give
/// the same numbers, times apart, whatever the number of threads.
SuiteResults run_suite(const Options& options);

}  // namespace eval
