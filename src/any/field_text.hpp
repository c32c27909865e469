#pragma once

#include <string_view>

#include <kvcondense/any/recipe_text.hpp>

namespace kvcondense::any::detail {

/// Reads `text` as a value of `field`. On refusal `why` gets the rest of a sentence that begins
/// with the method's word: "heavy must be ...".
bool read_value(const Field& field, std::string_view text, FieldValue& out, Message& why);

/// The candidate a person most likely meant, or empty. `next(i)` gives the i-th candidate, empty at
/// the end.
template <class Next>
std::string_view nearest(std::string_view word, Next&& next);

std::size_t edit_distance(std::string_view a, std::string_view b);

template <class Next>
std::string_view nearest(std::string_view word, Next&& next) {
  constexpr std::size_t longest = 32;
  if (word.size() > longest) return {};
  std::string_view best;
  std::size_t least = 2 + word.size() / 4;  // beyond this it is another word
  for (std::size_t i = 0;; ++i) {
    const std::string_view candidate = next(i);
    if (candidate.empty()) return best;
    if (candidate.size() > longest) continue;
    const bool begins = word.size() >= 3 && candidate.starts_with(word);
    const std::size_t d = begins ? 1 : edit_distance(word, candidate);
    if (d < least && d < word.size()) best = candidate, least = d;
  }
}

}  // namespace kvcondense::any::detail
