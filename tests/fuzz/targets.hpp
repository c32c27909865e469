#pragma once

#include <fuzz/fuzz.hpp>

namespace kvcondense::fuzz {

inline const Target* const targets[] = {&recipe_text, &snapshot, &bitstream, &model_files, &page_tables, &top_k, &cache_calls};

}  // namespace kvcondense::fuzz
