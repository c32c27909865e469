#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <engine/config.hpp>

namespace engine {

/// A vocabulary of 256 is taken as the bytes themselves; other vocabularies need ids from outside.
inline bool speaks_bytes(const ModelConfig& config) { return config.vocab == 256; }

inline std::vector<std::int32_t> bytes_to_tokens(std::string_view text) {
  std::vector<std::int32_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

inline std::string tokens_to_bytes(std::span<const std::int32_t> tokens) {
  std::string text;
  for (const std::int32_t t : tokens) text.push_back(static_cast<char>(t));
  return text;
}

}  // namespace engine
