#pragma once

#include <catch2/catch.hpp>
#include <engine/decoder.hpp>
#include <engine/json_text.hpp>
#include <engine/model.hpp>

// The shipped model and what was computed about it independently, loaded once per program.

namespace engine::test {

inline std::string tinylm_path(const char* file) {
  return std::string(KVCONDENSE_SOURCE_DIR) + "/examples/models/tinylm/" + file;
}

inline std::string tinylm_text(const char* file) {
  std::string why;
  auto text = read_file(tinylm_path(file), std::size_t{1} << 24, why);
  INFO(why);
  REQUIRE(text);
  return *std::move(text);
}

inline const Model& tinylm() {
  static const Model model = [] {
    std::string why;
    auto loaded = load_model(tinylm_path(""), why);
    INFO(why);
    REQUIRE(loaded);
    return *std::move(loaded);
  }();
  return model;
}

inline const nlohmann::json& reference() {
  static const nlohmann::json numbers = nlohmann::json::parse(tinylm_text("reference.json"));
  return numbers;
}

}  // namespace engine::test
