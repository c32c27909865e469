#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <kvcondense/any/registry.hpp>

namespace eval {

/// A method in a recipe, with what it stands around.
struct Piece {
  std::string word;
  std::vector<std::pair<std::string, std::string>> fields;
  std::vector<Piece> inner{};  ///< of a wrapper: one

  std::string text() const;
};

/// A recipe before it is sized: its stages in text that may have holes.
struct Candidate {
  std::vector<Piece> stages;

  std::string text() const;
};

/// "word(field=value, ...)", where "word" is one of the registry. Throws std::logic_error for what is none.
Piece piece_of(std::string_view word, std::string_view fields);

/// All that the registry has, singly and in the compositions of tune_space.hpp. Some of them a cache will refuse, or an evaluation
/// that lacks their arrays.
std::vector<Candidate> all_candidates(const kvcondense::any::Registry& registry);

/// The same with one knob turned, each knob of tune_space.hpp that the candidate has.
std::vector<Candidate> turned(const Candidate& candidate, const kvcondense::any::Registry& registry);

/// A candidate from a recipe's text as it stands, which has no knobs.
Candidate as_it_is(std::string text);

}  // namespace eval
