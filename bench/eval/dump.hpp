#pragma once

#include <string>

#include <eval/evaluate.hpp>

namespace eval {

/// Writes, per recipe r: `r.tokens.<layer>.<head>` (ordinals of the stored tokens),
/// `r.keys.<layer>.<head>` and `r.values.<layer>.<head>` as attention reads them, `r.out.<layer>`;
/// and `exact.out.<layer>`. Throws Error.
void write_dump(const Results& results, const Kept& kept, const std::string& path);

}  // namespace eval
