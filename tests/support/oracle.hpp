#pragma once

#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

namespace kvcondense::test {

/// A file of JSON; a failed requirement where there is none. In a file of its own: the parser is compiled once, not for
/// every test.
nlohmann::json read_json(const std::string& path);

/// One worked case of an oracle file in tests/oracles: its inputs, parameters and expected outputs.
inline nlohmann::json load_oracle(const std::string& file, const std::string& key) {
  std::string path = KVCONDENSE_TEST_DATA "/oracles/";
  path += file;
  const nlohmann::json all = read_json(path);
  const nlohmann::json& cases = all.contains("oracles") ? all.at("oracles") : all;
  INFO("case " << key << " of " << path);
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
