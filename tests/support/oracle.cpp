#include <support/oracle.hpp>

#include <fstream>

template class nlohmann::basic_json<>;

namespace kvcondense::test {
namespace {

void flatten(const nlohmann::json& from, std::vector<float>& to) {
  if (!from.is_array()) return to.push_back(from.get<float>());
  for (const auto& x : from) flatten(x, to);
}

}  // namespace

nlohmann::json read_json(const std::string& path) {
  std::ifstream in(path);
  INFO("file " << path);
  REQUIRE(in.good());
  return nlohmann::json::parse(in);
}

nlohmann::json load_oracle(const std::string& file, const std::string& key) {
  const std::string path = KVCONDENSE_TEST_DATA "/oracles/" + file;
  const nlohmann::json all = read_json(path);
  const nlohmann::json& cases = all.contains("oracles") ? all.at("oracles") : all;
  INFO("case " << key << " of " << path);
  REQUIRE(cases.contains(key));
  return cases.at(key);
}

std::vector<float> floats(const nlohmann::json& from) {
  std::vector<float> to;
  flatten(from, to);
  return to;
}

}  // namespace kvcondense::test
