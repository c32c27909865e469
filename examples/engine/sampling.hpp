#pragma once

#include <cmath>
#include <cstdint>
#include <span>

namespace engine {

/// The token with the largest logit. Ties keep the smaller token; NaN is never chosen unless all
/// are.
inline std::int32_t greedy(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < logits.size(); ++i)
    if (logits[i] > logits[best] || std::isnan(logits[best])) best = i;
  return static_cast<std::int32_t>(best);
}

/// -log2 of the probability that softmax(logits) gives to `token`. `token` indexes `logits`.
inline double bits(std::span<const float> logits, std::int32_t token) {
  const double top = logits[static_cast<std::size_t>(greedy(logits))];
  double sum = 0;
  for (const float l : logits) sum += std::exp(l - top);
  return (std::log(sum) + top - static_cast<double>(logits[static_cast<std::size_t>(token)])) /
         std::log(2.0);
}

}  // namespace engine
