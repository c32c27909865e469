#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <eval/evaluate_model.hpp>

namespace eval {

/// Bytes per token of a cache of this recipe at the end of a context. Throws Error where there can be no such cache.
using MeasureBytes = std::function<double(const std::string& recipe)>;

/// The same of a recipe that was read, by replaying a recording of the first window (with raw rows where the recipe wants
/// them), or by the model where the recipe looks at more than a recording has. `logits`: the full cache's, per window.
double bytes_at_end(const RecipeSpec& recipe, const Stage& stage, const ModelTask* task, const std::vector<std::vector<float>>& logits);

/// Bytes of keys and values of a token in 16 bits: what shares are parts of.
inline double bytes_of_16_bit(const CacheShape& s) { return 2.0 * static_cast<double>(s.layers * s.kv_heads * (s.head_dim + s.values())); }

/// A recipe whose holes were filled so that it takes what it may.
struct SizedRecipe {
  std::string recipe;
  std::string setting;         ///< what went into its holes: "tokens = 117", "3 of 4"
  double bytes_per_token = 0;  ///< of it
  bool reached = false;        ///< it fits, and no larger setting would; else `note` says what is the matter
  std::string note;
};

/// A recipe with holes, all of them one setting:
///
///   {tokens}, {tokens/2-4}   a whole number from 1 to the context's length; + - * / by whole numbers, from left to right
///   {part}                   the same number as a part of the context
///   {2|4|8}, {8..64:8}       settings in turn, from the smallest cache to the largest or back; lists of one recipe are
///                            equally long
///
/// Measured settings are remembered, so several targets cost little more than one.
class Sizer {
 public:
  /// Throws Error with the hole at fault.
  Sizer(std::string text, index_t context, MeasureBytes measure);

  static bool has_hole(std::string_view text) { return text.find('{') != std::string_view::npos; }

  /// The largest setting that takes at most so many bytes per token. Where none does, the smallest; `reached` and
  /// `note` say so, and also where the largest of all leaves some free. Throws Error where no setting is accepted.
  SizedRecipe fit(double bytes_per_token);

  index_t settings() const { return count_; }
  std::string filled(index_t setting) const;  ///< from 0

 private:
  struct Hole {
    std::size_t begin = 0, end = 0;  ///< in the text, braces included
    std::string expression;          ///< over tokens or part; empty: a list
    std::vector<std::string> list;
  };

  double bytes(index_t setting);
  std::string named(index_t setting) const;

  std::string text_;
  std::vector<Hole> holes_;
  index_t context_, count_ = 0;
  MeasureBytes measure_;
  std::map<index_t, double> measured_;  ///< below 0: refused
  std::string refusal_;                 ///< of the setting refused last
};

}  // namespace eval
