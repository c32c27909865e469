#pragma once

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cost {

/// The numbers of a decoder that costs depend on: gated feed-forward, no biases, RMSNorm.
struct Model {
  index_t layers = 0;
  index_t hidden = 0;
  index_t intermediate = 0;
  index_t q_heads = 0;
  index_t kv_heads = 0;
  index_t head_dim = 0;
  index_t vocab = 0;
  bool tied = false;  ///< one matrix embeds tokens and gives logits

  constexpr double parameters() const {
    const auto d = [](index_t x) { return static_cast<double>(x); };
    const double h = d(hidden), q = d(q_heads * head_dim), kv = d(kv_heads * head_dim);
    const double layer = 2.0 * h * q + 2.0 * h * kv + 3.0 * h * d(intermediate) + 2.0 * h;
    return d(layers) * layer + (tied ? 1.0 : 2.0) * d(vocab) * h + h;
  }

  /// Keys and values of one token in all layers.
  constexpr double kv_bytes_per_token(double bytes_per_number = 2.0) const {
    return 2.0 * static_cast<double>(layers * kv_heads * head_dim) * bytes_per_number;
  }

  Status validate() const {
    const auto sane = [](index_t x) { return x > 0 && x <= (index_t{1} << 24); };
    const bool all = sane(layers) && sane(hidden) && sane(intermediate) && sane(q_heads) && sane(kv_heads) &&
                     sane(head_dim) && sane(vocab);
    return all && q_heads % kv_heads == 0 ? Status::ok : Status::invalid_argument;
  }
};

/// What a device does at its best, in FLOP, bytes and seconds.
struct Device {
  double flops = 0;      ///< per second, dense 16 bit
  double bandwidth = 0;  ///< of its memory
  double memory = 0;     ///< bytes
  double link = 0;       ///< to the host, bytes per second one way

  /// FLOP per byte from which on arithmetic limits, not memory.
  constexpr double ridge() const { return flops / bandwidth; }

  Status validate() const {
    const auto sane = [](double x) { return x > 0.0 && x < 1e30; };
    return sane(flops) && sane(bandwidth) && sane(memory) && sane(link) ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::cost
