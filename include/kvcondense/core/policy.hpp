#pragma once

#include <concepts>
#include <cstdint>

namespace kvcondense {

/// What a stage of a recipe changes, in the order in which a step runs them; then the rooms of methods that
/// stand beside a cache: programs call those, no recipe names them.
enum class Stage : std::uint8_t { evict, budget, merge, lowrank, quant, position, retrieve, reuse, storage, cost };

constexpr const char* to_string(Stage s) {
  switch (s) {
    case Stage::evict: return "evict";
    case Stage::budget: return "budget";
    case Stage::merge: return "merge";
    case Stage::lowrank: return "lowrank";
    case Stage::quant: return "quant";
    case Stage::position: return "position";
    case Stage::retrieve: return "retrieve";
    case Stage::reuse: return "reuse";
    case Stage::storage: return "storage";
    case Stage::cost: return "cost";
  }
  return "unknown";
}

/// A method's identity: its word in recipes and docs, its stage or room, its source.
struct Descriptor {
  const char* word;
  Stage stage;
  const char* source;
};

/// The word of a stage. Stages chosen at run time answer with the word they stand for.
template <class S>
constexpr const char* word_of(const S& stage) {
  if constexpr (requires { stage.word(); }) return stage.word();
  else return S::about.word;
}

template <class P>
concept Described = requires {
  { P::about } -> std::convertible_to<Descriptor>;
};

}  // namespace kvcondense
