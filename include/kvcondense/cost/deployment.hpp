#pragma once

#include <cmath>

#include <kvcondense/core/policy.hpp>
#include <kvcondense/cost/model.hpp>

namespace kvcondense::cost {

/// What crosses the link in one step when attention runs on other devices than the rest (Lamina,
/// arXiv:2405.01814): per layer and sequence a query and an output of the hidden size, and keys and values of the
/// grouped heads. It does not depend on the context.
constexpr double split_attention_bytes(double hidden, double group, double batch, double layers, double bytes_per_number = 2.0) {
  return (2.0 + 2.0 / group) * bytes_per_number * hidden * batch * layers;
}

/// What a recipe multiplies, each beside a full cache in 16 bits: 1 changes nothing.
struct Factors {
  double held = 1.0;      ///< bytes a sequence holds on the device: users
  double read = 1.0;      ///< bytes of it that one decode step reads: latency
  double switched = 1.0;  ///< bytes that move when users change
  double prefill = 1.0;   ///< arithmetic of the attention of a prompt
};

/// What part of the attention matrix of a prompt is computed.
enum class PrefillAttention : unsigned char {
  causal,  ///< what lies on and below the diagonal
  full,    ///< all of it, half of which is masked
};

/// Tells users per device, prefill, decode and switching times of a model with long contexts.
///
/// Idea     four limits, one per resource: prefill by arithmetic, users by memory, decoding by memory
///          bandwidth, switching between users by the link to the host. All but the first shrink with the
///          bytes of a cache.
/// Source   Fu, Challenges in Deploying Long-Context Transformers, arXiv:2405.08944; formulas derived anew.
/// Needs    the model's and the device's numbers; what a recipe makes of a cache, as measured.
/// Shapes   scalars.
/// Cost     a few operations.
/// Numbers  double. Peaks of data sheets: times are lower bounds. N parameters of 2 bytes; `tokens` of context:
///          prefill (2 N tokens + A) / flops with A = 2 layers tokens^2 q_heads head_dim (causal), twice that in
///          full; users floor((memory - 2 N) / cache); decode (2 N + users cache) / bandwidth; switch cache / link.
/// Errors   validate: invalid_argument unless all numbers are positive, factors >= 0.
struct Deployment {
  static constexpr Descriptor about{"deployment", Stage::cost, "arXiv:2405.08944"};

  Model model{};
  Device device{};
  double parameters = 0;  ///< 0: as the model's shape says
  double bytes_per_weight = 2.0;
  Factors recipe{};

  double weights() const { return parameters > 0 ? parameters : model.parameters(); }
  double weight_bytes() const { return bytes_per_weight * weights(); }
  /// One user's cache on the device.
  double cache_bytes(double tokens) const { return tokens * model.kv_bytes_per_token() * recipe.held; }
  /// Of it, what one decode step reads.
  double read_bytes(double tokens) const { return tokens * model.kv_bytes_per_token() * recipe.read; }

  double attention_flops(double tokens, PrefillAttention kind = PrefillAttention::causal) const {
    const double pairs = tokens * tokens * static_cast<double>(model.layers * model.q_heads * model.head_dim);
    return (kind == PrefillAttention::causal ? 2.0 : 4.0) * pairs * recipe.prefill;
  }
  double prefill_flops(double tokens, PrefillAttention kind = PrefillAttention::causal) const {
    return 2.0 * weights() * tokens + attention_flops(tokens, kind);
  }
  double prefill_seconds(double tokens, PrefillAttention kind = PrefillAttention::causal) const {
    return prefill_flops(tokens, kind) / device.flops;
  }

  /// How many caches fit beside the weights, on `devices` that share both; below 0 the weights do not fit.
  double room(double tokens, index_t devices = 1) const {
    return (static_cast<double>(devices) * device.memory - weight_bytes()) / cache_bytes(tokens);
  }
  index_t users(double tokens, index_t devices = 1) const {
    const double n = std::floor(room(tokens, devices));
    return !(n > 0.0) ? 0 : n < 1e15 ? static_cast<index_t>(n) : static_cast<index_t>(1e15);
  }

  /// What one step for `users` users reads: weights once, every cache once.
  double decode_bytes(double tokens, double users = 1.0) const { return weight_bytes() + users * read_bytes(tokens); }
  double decode_seconds(double tokens, double users = 1.0) const { return decode_bytes(tokens, users) / device.bandwidth; }

  /// One way; a change of users is two: one out, one in.
  double switch_seconds(double tokens) const {
    return tokens * model.kv_bytes_per_token() * recipe.switched / device.link;
  }
  /// A dialogue: one prefill, then `rounds` of `generated` tokens, the cache brought in and out for each.
  double session_seconds(double tokens, double rounds, double generated) const {
    return prefill_seconds(tokens) + rounds * (generated * decode_seconds(tokens) + 2.0 * switch_seconds(tokens));
  }

  Status validate() const {
    if (const Status s = model.validate(); s != Status::ok) return s;
    if (const Status s = device.validate(); s != Status::ok) return s;
    const auto sane = [](double x) { return x >= 0.0 && x < 1e6; };
    const bool factors = sane(recipe.held) && sane(recipe.read) && sane(recipe.switched) && sane(recipe.prefill);
    const bool weights = parameters >= 0.0 && parameters < 1e18 && bytes_per_weight > 0.0 && bytes_per_weight <= 8.0;
    return factors && weights ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::cost
