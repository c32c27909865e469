#include <fstream>

#include <support/oracle.hpp>

nlohmann::json kvcondense::test::read_json(const std::string& path) {
  std::ifstream in(path);
  INFO("file " << path);
  REQUIRE(in.good());
  return nlohmann::json::parse(in);
}
