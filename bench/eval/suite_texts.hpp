#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <kvcondense/core/config.hpp>

namespace eval {

using kvcondense::index_t;

/// Draws that are the same everywhere: SplitMix64.
class Draws {
 public:
  explicit Draws(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next();
  index_t below(index_t n) { return static_cast<index_t>(next() % static_cast<std::uint64_t>(n)); }

 private:
  std::uint64_t state_;
};

/// A value that a document defines once, and the line that asks for it.
struct Needle {
  std::string name, value;  ///< "socket_31", "0482"
  index_t at = 0;           ///< byte of the document where its value begins

  std::string definition() const { return name + " = " + value + "\n"; }
  std::string question() const { return "assert " + name + " == "; }
};

/// Lines of a text with values defined among them.
struct Haystack {
  std::string text;
  std::vector<Needle> needles;  ///< in the order of the document
};

/// Documents in the manner of recall.jsonl, made of the lines and words of a text. The same seed gives the same ones.
class TextMaker {
 public:
  /// Throws Error when the text has too few lines or words.
  TextMaker(std::string_view text, std::uint64_t seed);

  /// Of `length` bytes or up to a line less, with one needle at each of `depths`: parts of the document, ascending.
  Haystack haystack(index_t length, const std::vector<double>& depths);
  std::string line();  ///< another line of the text, its end included

 private:
  Needle needle();

  std::vector<std::string> lines_, words_;
  std::vector<std::string> taken_;
  Draws draws_;
  std::size_t next_line_ = 0;
};

}  // namespace eval
