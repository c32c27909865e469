#pragma once

#include <cstdint>

#include <kvcondense/core/config.hpp>

namespace kvcondense {

/// Counter-based random bits: the same (seed, counter) gives the same bits on every backend and in
/// every order of evaluation. SplitMix64 finaliser over a Weyl sequence.
KVCONDENSE_HD constexpr std::uint64_t random_bits(std::uint64_t seed, std::uint64_t counter) {
  std::uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

/// Uniform in [0, 1), 24 bits.
KVCONDENSE_HD constexpr float random_uniform(std::uint64_t seed, std::uint64_t counter) {
  return static_cast<float>(random_bits(seed, counter) >> 40) * 0x1p-24f;
}

}  // namespace kvcondense
