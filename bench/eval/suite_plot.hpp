#pragma once

#include <string>
#include <vector>

#include <eval/suite.hpp>

namespace eval {

struct Picture {
  std::string file, svg;
};

/// Error against memory with a curve per family; recall by depth; bytes and time per recipe. Those of which nothing was measured are
/// not there. The same results give the same bytes.
std::vector<Picture> suite_pictures(const SuiteResults& results);

}  // namespace eval
