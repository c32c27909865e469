#pragma once

#include <cstdint>

namespace eval {

/// What a cache knows of a question when it condenses a document.
enum class Ask : std::uint8_t {
  stream,  ///< the second half of the document comes token by token, with all its questions
  inside,  ///< one question at a time, fed at once with all that is before it, but for its last token
  later,   ///< one question at a time, token by token behind all that is before it
};

constexpr const char* to_string(Ask a) {
  switch (a) {
    case Ask::stream: return "stream";
    case Ask::inside: return "inside";
    case Ask::later: return "later";
  }
  return "unknown";
}

}  // namespace eval
