#pragma once

#include <cctype>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <engine/config.hpp>
#include <kvcondense/core/step_inputs.hpp>

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

/// What kind of thing each byte is. There is none that begins a text, so its first byte stands for one.
inline std::vector<kvcondense::TokenClass> byte_classes(std::span<const std::int32_t> tokens, bool begins) {
  using kvcondense::TokenClass;
  std::vector<TokenClass> classes;
  for (const std::int32_t t : tokens)
    classes.push_back(t < 128 && std::ispunct(t) != 0 ? TokenClass::punctuation : TokenClass::plain);
  if (begins && !classes.empty()) classes.front() = TokenClass::special;
  return classes;
}

}  // namespace engine
