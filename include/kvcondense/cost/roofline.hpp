#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/policy.hpp>
#include <kvcondense/cost/model.hpp>

namespace kvcondense::cost {

/// Operations and bytes of a piece of work.
struct Work {
  double ops = 0;
  double bytes = 0;

  constexpr double intensity() const { return ops / bytes; }
  friend constexpr Work operator+(Work a, Work b) { return {a.ops + b.ops, a.bytes + b.bytes}; }
};

/// Bytes of one stored number of each kind; codes have their parameters in them.
struct NumberBytes {
  double weight = 2.0;
  double activation = 2.0;
  double cache = 2.0;
};

/// Heads of one layer and how many sequences share a step.
struct AttentionShape {
  index_t q_heads = 1;
  index_t kv_heads = 1;
  index_t head_dim = 64;
  index_t batch = 1;
};

/// Tells whether arithmetic or memory limits each operation of a layer, and its least time.
///
/// Idea     a device reaches min(flops, intensity * bandwidth): work with few operations per byte waits for
///          memory, whatever the device can compute.
/// Source   LLM-Viewer, arXiv:2402.16363.
/// Needs    the device's two peaks.
/// Shapes   scalars.
/// Cost     a few operations.
/// Numbers  double. A product of ic x oc: 2 ic oc per token; scores and weighted sums 2 q_heads head_dim per pair
///          of tokens; softmax 5 per pair. In fused attention only queries, keys, values and output move.
/// Differs  the published calculator counts keys and values of fused attention per query head and its output by
///          the context's length; here per KV head, and by the head's size.
/// Errors   validate: invalid_argument unless both peaks are positive.
struct Roofline {
  static constexpr Descriptor about{"roofline", Stage::cost, "arXiv:2402.16363"};

  Device device{};
  NumberBytes bytes{};

  bool compute_bound(Work w) const { return w.intensity() >= device.ridge(); }
  double flops(Work w) const { return std::min(device.flops, w.intensity() * device.bandwidth); }
  double seconds(Work w) const { return std::max(w.ops / device.flops, w.bytes / device.bandwidth); }

  /// A projection of `tokens` rows; `to_cache`: its output is keys or values.
  Work linear(index_t in, index_t out, index_t tokens, bool to_cache = false) const {
    const double i = d(in), o = d(out), t = d(tokens);
    return {2.0 * i * o * t, i * o * bytes.weight + i * t * bytes.activation + o * t * (to_cache ? bytes.cache : bytes.activation)};
  }
  /// One decode step over `context` slots, by parts that write their results to memory.
  Work decode_scores(const AttentionShape& s, index_t context) const {
    return {2.0 * pairs(s, context) * d(s.head_dim),
            row_bytes(s) + slot_bytes(s, context) + pairs(s, context) * bytes.activation};
  }
  Work decode_softmax(const AttentionShape& s, index_t context) const {
    return {5.0 * pairs(s, context), 2.0 * pairs(s, context) * bytes.activation};
  }
  Work decode_values(const AttentionShape& s, index_t context) const { return decode_scores(s, context); }
  /// The same in one kernel.
  Work decode_fused(const AttentionShape& s, index_t context) const {
    return {(4.0 * d(s.head_dim) + 5.0) * pairs(s, context), 2.0 * row_bytes(s) + 2.0 * slot_bytes(s, context)};
  }
  /// A prompt in one kernel whose blocks of query rows each read all keys and values once.
  Work prefill_fused(const AttentionShape& s, index_t tokens, index_t block_rows) const {
    const double n = d(tokens), blocks = std::ceil(n / d(block_rows));
    return {(4.0 * d(s.head_dim) + 5.0) * pairs(s, tokens) * n,
            2.0 * row_bytes(s) * n + blocks * 2.0 * slot_bytes(s, tokens)};
  }
  /// Query rows of a block whose keys fit into `on_chip` bytes.
  index_t block_rows(index_t head_dim, double on_chip) const {
    return static_cast<index_t>(std::min(std::ceil(on_chip / (bytes.cache * d(head_dim))), d(head_dim)));
  }
  /// What the intensity of decode attention comes close to in long contexts: 16 group / bits of a number.
  double decode_limit(const AttentionShape& s) const { return d(s.q_heads) / d(s.kv_heads) * 2.0 / bytes.cache; }

  Status validate() const {
    const auto sane = [](double x) { return x > 0.0 && x < 1e30; };
    const bool all = sane(device.flops) && sane(device.bandwidth) && sane(bytes.weight) && sane(bytes.activation) && sane(bytes.cache);
    return all ? Status::ok : Status::invalid_argument;
  }

 private:
  static constexpr double d(index_t x) { return static_cast<double>(x); }
  static double pairs(const AttentionShape& s, index_t context) { return d(s.batch * s.q_heads) * d(context); }
  double row_bytes(const AttentionShape& s) const { return d(s.batch * s.q_heads * s.head_dim) * bytes.activation; }
  double slot_bytes(const AttentionShape& s, index_t context) const {
    return d(s.batch * s.kv_heads * s.head_dim) * d(context) * bytes.cache;
  }
};

}  // namespace kvcondense::cost
