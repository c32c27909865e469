#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numbers>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::prim {

/// Which two components of a row turn together, for pair t of `pairs`.
enum class RopePairing : std::uint8_t {
  half_split,   ///< t and t + pairs (GPT-NeoX, Llama in Hugging Face layout)
  interleaved,  ///< 2t and 2t + 1 (GPT-J, original RoFormer and Llama checkpoints)
};

enum class RopeScaling : std::uint8_t { none, linear, dynamic_ntk, llama3, yarn, longrope, table };

/// A model's rotary embedding. Fields that its scaling does not name are ignored.
struct RopeConfig {
  RopePairing pairing = RopePairing::half_split;
  index_t rotary_dim = 0;  ///< leading components that rotate; 0: all
  double base = 10000.0;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;             ///< all scalings but table
  index_t original_length = 8192;  ///< dynamic_ntk, llama3, yarn, longrope
  index_t length = 0;              ///< dynamic_ntk, longrope: the length the frequencies are for
  double low_frequency = 1.0;      ///< llama3
  double high_frequency = 4.0;     ///< llama3
  double beta_fast = 32.0;         ///< yarn
  double beta_slow = 1.0;          ///< yarn
  double attention_factor = 0.0;   ///< of cos and sin; 0: by the scaling's rule
  std::span<const float> table{};       ///< table: frequencies; longrope: divisors up to original_length
  std::span<const float> long_table{};  ///< longrope: divisors beyond it
};

/// Radians per position of every pair, ready for kernels: plain arrays, no pointers.
struct RopeAngles {
  float frequency[max_head_dim / 2] = {};
  index_t pairs = 0;
  RopePairing pairing = RopePairing::half_split;
  float attention_factor = 1.0f;  ///< what an engine multiplies cos and sin by; rotations here do not
};

namespace rope_rules {

inline bool numbers_ok(const RopeConfig& c, index_t rotary) {
  const auto positive = [](double x) { return x > 0.0 && x < 1e30; };
  if (rotary < 2 || rotary % 2 != 0 || !(c.base > 1.0 && c.base < 1e30)) return false;
  if (!positive(c.factor) || !(c.attention_factor >= 0.0 && c.attention_factor < 1e6)) return false;
  const auto pairs = static_cast<std::size_t>(rotary / 2);
  const auto usable = [&](std::span<const float> t) {
    if (t.size() != pairs) return false;
    for (const float x : t)
      if (!positive(static_cast<double>(x))) return false;
    return true;
  };
  const bool lengths = c.original_length > 1 && c.length >= 0;
  switch (c.scaling) {
    case RopeScaling::none:
    case RopeScaling::linear: return true;
    case RopeScaling::dynamic_ntk: return lengths && rotary > 2 && c.factor >= 1.0;
    case RopeScaling::llama3: return lengths && positive(c.low_frequency) && c.high_frequency > c.low_frequency;
    case RopeScaling::yarn: return lengths && c.factor >= 1.0 && positive(c.beta_slow) && positive(c.beta_fast);
    case RopeScaling::longrope:
      return lengths && c.factor >= 1.0 && usable(c.table) && usable(c.long_table);
    case RopeScaling::table: return usable(c.table);
  }
  return false;
}

/// First and last pair of YaRN's ramp from the plain to the divided frequency.
inline void yarn_ramp(const RopeConfig& c, double rotary, double& low, double& high) {
  const auto pair_that_turns = [&](double times) {
    return rotary * std::log(static_cast<double>(c.original_length) / (2.0 * std::numbers::pi * times)) /
           (2.0 * std::log(c.base));
  };
  low = std::fmax(std::floor(pair_that_turns(c.beta_fast)), 0.0);
  high = std::fmin(std::ceil(pair_that_turns(c.beta_slow)), rotary - 1.0);
  if (low == high) high += 0.001;
}

inline double llama3_frequency(const RopeConfig& c, double f) {
  const double wave = 2.0 * std::numbers::pi / f, original = static_cast<double>(c.original_length);
  if (wave < original / c.high_frequency) return f;
  if (wave > original / c.low_frequency) return f / c.factor;
  const double mix = (original / wave - c.low_frequency) / (c.high_frequency - c.low_frequency);
  return (1.0 - mix) * f / c.factor + mix * f;
}

}  // namespace rope_rules

/// Does this configuration rotate rows of `dim` numbers?
inline Status validate_rope(const RopeConfig& c, index_t dim) {
  if (dim < 1 || dim > max_head_dim || c.rotary_dim < 0 || c.rotary_dim > dim) return Status::invalid_argument;
  return rope_rules::numbers_ok(c, c.rotary_dim == 0 ? dim : c.rotary_dim) ? Status::ok : Status::invalid_argument;
}

/// Frequencies and attention factor of a configuration for rows of `dim` numbers.
///
/// Source   RoFormer, arXiv:2104.09864; YaRN, arXiv:2309.00071; LongRoPE, arXiv:2402.13753; the scalings
///          `linear`, `dynamic` and `llama3` as model configurations name them.
/// Numbers  computed in double, kept as float, as engines keep them.
/// Errors   invalid_argument when `validate_rope` says so.
inline Expected<RopeAngles> rope_angles(const RopeConfig& c, index_t dim) {
  if (const Status s = validate_rope(c, dim); s != Status::ok) return s;
  RopeAngles a;
  const index_t rotary = c.rotary_dim == 0 ? dim : c.rotary_dim;
  const double rd = static_cast<double>(rotary), original = static_cast<double>(c.original_length);
  a.pairs = rotary / 2;
  a.pairing = c.pairing;
  double base = c.base, attention = 1.0, low = 0.0, high = 1.0;
  const bool beyond = c.length > c.original_length;
  if (c.scaling == RopeScaling::dynamic_ntk && beyond)
    base *= std::pow(c.factor * static_cast<double>(c.length) / original - (c.factor - 1.0), rd / (rd - 2.0));
  if (c.scaling == RopeScaling::yarn) {
    rope_rules::yarn_ramp(c, rd, low, high);
    attention = 0.1 * std::log(c.factor) + 1.0;
  }
  if (c.scaling == RopeScaling::longrope) attention = std::sqrt(1.0 + std::log(c.factor) / std::log(original));
  for (index_t t = 0; t < a.pairs; ++t) {
    const auto i = static_cast<std::size_t>(t);
    double f = std::pow(base, -2.0 * static_cast<double>(t) / rd);
    switch (c.scaling) {
      case RopeScaling::none:
      case RopeScaling::dynamic_ntk: break;
      case RopeScaling::linear: f /= c.factor; break;
      case RopeScaling::llama3: f = rope_rules::llama3_frequency(c, f); break;
      case RopeScaling::yarn: {
        const double ramp = std::fmin(std::fmax((static_cast<double>(t) - low) / (high - low), 0.0), 1.0);
        f = f / c.factor * ramp + f * (1.0 - ramp);
        break;
      }
      case RopeScaling::longrope: f /= static_cast<double>(beyond ? c.long_table[i] : c.table[i]); break;
      case RopeScaling::table: f = static_cast<double>(c.table[i]); break;
    }
    a.frequency[t] = static_cast<float>(f);
  }
  a.attention_factor = static_cast<float>(c.attention_factor > 0.0 ? c.attention_factor : attention);
  return a;
}

/// Differs when two configurations rotate differently; snapshots compare it.
inline std::int64_t fingerprint(const RopeConfig& c) {
  std::uint64_t h = 0xcbf29ce484222325ull;
  const auto add = [&](std::uint64_t v) { h = (h ^ v) * 0x100000001b3ull, h ^= h >> 29; };
  for (const index_t v : {static_cast<index_t>(c.pairing), c.rotary_dim, static_cast<index_t>(c.scaling),
                          c.original_length, c.length})
    add(static_cast<std::uint64_t>(v));
  for (const double v : {c.base, c.factor, c.low_frequency, c.high_frequency, c.beta_fast, c.beta_slow, c.attention_factor})
    add(detail::bit_cast<std::uint64_t>(v));
  for (const auto& t : {c.table, c.long_table}) {
    add(t.size());
    for (const float v : t) add(detail::bit_cast<std::uint32_t>(v));
  }
  return static_cast<std::int64_t>(h);
}

}  // namespace kvcondense::prim
