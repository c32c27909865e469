#pragma once

#include <fstream>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

namespace kvcondense::test {

/// One worked case of an oracle file in tests/oracles: its inputs, parameters and expected outputs.
inline nlohmann::json load_oracle(const std::string& file, const std::string& key) {
  const std::string path = KVCONDENSE_TEST_DATA "/oracles/" + file;
  std::ifstream in(path);
  INFO("oracle " << path << ", case " << key);
  REQUIRE(in.good());
  const nlohmann::json all = nlohmann::json::parse(in);
  const nlohmann::json& cases = all.contains("oracles") ? all.at("oracles") : all;
  REQUIRE(cases.contains(key));
  return cases.at(key);
}

/// Numbers of any nesting, row by row.
inline void flatten(const nlohmann::json& from, std::vector<float>& to) {
  if (!from.is_array()) return to.push_back(from.get<float>());
  for (const auto& x : from) flatten(x, to);
}
inline std::vector<float> floats(const nlohmann::json& from) {
  std::vector<float> to;
  flatten(from, to);
  return to;
}

}  // namespace kvcondense::test
