#pragma once

#include <string>

#include <eval/evaluate.hpp>

namespace eval {

/// A safetensors file with, per recipe r: `r.tokens.<layer>.<head>` (ordinals of the stored
/// tokens), `r.keys.<layer>.<head>` and `r.values.<layer>.<head>` as they come out of the store,
/// decoded (keys before rotation where the metadata `keys.r` is raw), `r.out.<layer>`;
/// `exact.out.<layer>`; and where slots are coded `r.key_pages.<layer>.<head>`,
/// `r.key_places.<layer>.<head>`, and the same of values. docs/evaluation.md describes them. Throws
/// Error.
std::string dump_bytes(const Results& results, const Kept& kept);

}  // namespace eval
