#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/merge_partials.hpp>

namespace kvcondense::storage {

/// Splits a sequence's cache over machines and says what each sends so that attention is that of one.
///
/// Idea     each shard attends over its own slots and sends an output and an lse per query: bytes that do not
///          depend on the context. Joined by `prim::MergePartials` they are exact.
/// Source   Infinite-LLM (DistAttention), arXiv:2401.02669; attention on other devices, Lamina, arXiv:2405.01814.
/// Needs    attention with lse, as `attend` measures it.
/// Shapes   tokens 0 .. tokens - 1 in `shards` slices of about equal length, in order; what comes later belongs to the
///          last one. A message is [q_heads, tokens, value_dim + 1] floats: output, then lse.
/// Cost     q_heads * (head_dim + value_dim + 1) floats per query, layer and remote shard.
/// Numbers  floats as they are.
/// Errors   shape_mismatch when a message and views disagree; invalid_argument for shards that cannot be.
struct PartialAttention {
  static constexpr Descriptor about{"partial_attention", Stage::storage, "arXiv:2401.02669"};

  index_t shards = 1;
  index_t tokens = 0;  ///< of the prompt that is split

  Status validate() const { return shards >= 1 && tokens >= 0 && tokens <= (index_t{1} << 40) ? Status::ok : Status::invalid_argument; }
  /// Tokens [begin, end) of the prompt belong to shard r.
  index_t begin(index_t r) const { return tokens * r / shards; }
  index_t end(index_t r) const { return begin(r + 1); }
  index_t owner(index_t token) const {
    if (token >= tokens) return shards - 1;
    index_t r = token * shards / tokens;
    while (token >= end(r)) ++r;
    return r;
  }

  static index_t message_numbers(index_t q_heads, index_t queries, index_t value_dim) { return q_heads * queries * (value_dim + 1); }
  /// What a query costs on the wire, there and back, in numbers.
  static index_t traffic(index_t q_heads, index_t head_dim, index_t value_dim) { return q_heads * (head_dim + value_dim + 1); }

  static Status pack(const prim::PartialAttention& part, std::span<float> message) {
    const index_t heads = part.out.extent[0], n = part.out.extent[1], dim = part.out.extent[2];
    if (part.lse.extent[0] != heads || part.lse.extent[1] != n) return Status::shape_mismatch;
    if (static_cast<index_t>(message.size()) != message_numbers(heads, n, dim)) return Status::shape_mismatch;
    float* to = message.data();
    for (index_t h = 0; h < heads; ++h)
      for (index_t t = 0; t < n; ++t) {
        for (index_t d = 0; d < dim; ++d) *to++ = part.out(h, t, d);
        *to++ = part.lse(h, t);
      }
    return Status::ok;
  }
  /// A message seen as the part it holds; nothing is copied.
  static prim::PartialAttention unpack(std::span<const float> message, index_t q_heads, index_t queries, index_t value_dim) {
    const index_t step = value_dim + 1;
    return {{message.data(), {q_heads, queries, value_dim}, {queries * step, step, 1}},
            {message.data() + value_dim, {q_heads, queries}, {queries * step, step}}};
  }
};

/// The same as DistAttention ships it: maximum, sum of exponentials from it, and the sum of values they weigh.
struct PartialSums {
  double maximum = 0.0;
  double sum = 0.0;

  /// The lse that such a triple means; its output is accumulated / sum.
  double lse() const { return maximum + std::log(sum); }
};

}  // namespace kvcondense::storage
