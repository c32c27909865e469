#pragma once

#include <algorithm>
#include <cmath>

#include <catch2/catch.hpp>
#include <engine/condensed_attention.hpp>
#include <engine/decoder.hpp>
#include <engine/json_text.hpp>
#include <engine/model.hpp>
#include <kvcondense/any/any_cache.hpp>

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

/// The largest difference between logits and the reference's.
inline double worst(std::span<const float> got, const nlohmann::json& want) {
  REQUIRE(got.size() == want.size());
  double error = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    REQUIRE(std::isfinite(got[i]));
    error = std::max(error, std::abs(static_cast<double>(got[i]) - want[i].get<double>()));
  }
  return error;
}

/// An empty cache for the model from the text of a recipe.
inline CondensedAttention<kvcondense::any::AnyCache> any_attention(
    std::string_view recipe, kvcondense::DType dtype, kvcondense::any::ModelFacts facts = {}) {
  namespace any = kvcondense::any;
  auto shape = cache_shape(tinylm().config);
  shape.dtype = dtype;
  facts.rope = library_rope(tinylm().config.rope, 2048);
  auto made = any::make(recipe, shape, any::on<kvcondense::Cpu>, kvcondense::heap_memory(), facts);
  INFO(made.message());
  REQUIRE(made);
  return CondensedAttention(*std::move(made));
}

}  // namespace engine::test
