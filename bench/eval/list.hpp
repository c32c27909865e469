#pragma once

#include <string>
#include <string_view>

namespace eval {

/// Every method, one line each, the word first: room, needs, backends, source, summary. Those that stand
/// beside a cache come last.
std::string list_methods();

/// One method and its fields, one line each. Throws Error for a word that no method has.
std::string describe_method(std::string_view word);

}  // namespace eval
