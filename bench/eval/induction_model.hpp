#pragma once

#include <cstdint>
#include <vector>

#include <engine/model.hpp>

namespace eval {

using kvcondense::index_t;

/// A model of two layers whose weights were written down, not trained, and what it can be asked: it knows nothing but
/// what its cache holds, so a wrong answer is the cache's fault.
///
/// Idea     tokens are sparse codes. The first layer's head turns to the place before each token and copies its code; the
///          second layer's head looks for a place whose copied code is that of the token at hand, and reads what stands
///          there: after "key value ... key" comes value.
/// Rotation the first head tells places by fast pairs of its channels. The second one's codes lie in slow pairs, which
///          512 tokens do not turn by more than 0.005: content, whatever its position.
struct InductionModel {
  static constexpr index_t keys = 128, first_value = 128, values = 128;

  /// The same for the same seed.
  explicit InductionModel(std::uint64_t seed = 12345);

  engine::Model model;
  std::vector<std::int32_t> context;  ///< 512 tokens: each key once, its value behind it, two others behind that
  std::vector<std::int32_t> answer;   ///< of every key
  std::vector<index_t> place;         ///< of that answer in the context
};

/// The value that logits of this model name.
std::int32_t named_value(std::span<const float> logits);

}  // namespace eval
