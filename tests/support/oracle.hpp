#pragma once

#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

// Compiled once, in oracle.cpp, not for every test.
extern template class nlohmann::basic_json<>;

namespace kvcondense::test {

/// A file of JSON; a failed requirement where there is none.
nlohmann::json read_json(const std::string& path);

/// One worked case of an oracle file in tests/oracles: its inputs, parameters and expected outputs.
nlohmann::json load_oracle(const std::string& file, const std::string& key);

/// Numbers of any nesting, row by row.
std::vector<float> floats(const nlohmann::json& from);

}  // namespace kvcondense::test
