#pragma once

#include <string>

namespace eval {

/// Every method, one line each, the word first: room, summary, needs, backends, source.
std::string list_methods();

}  // namespace eval
