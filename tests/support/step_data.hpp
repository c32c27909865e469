#pragma once

#include <cmath>
#include <random>
#include <vector>

#include <kvcondense/core/step_inputs.hpp>

namespace kvcondense::test {

/// Random numbers for everything that a step may be given besides attention.
class StepData {
 public:
  StepData(const CacheShape& s, index_t tokens, std::mt19937& random) : shape_(s), tokens_(tokens) {
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, index_t size) {
      x.resize(static_cast<std::size_t>(size));
      for (float& e : x) e = normal(random);
    };
    fill(queries_, s.q_heads * tokens * s.head_dim);
    fill(raw_queries_, s.q_heads * tokens * s.head_dim);
    fill(raw_keys_, s.kv_heads * tokens * s.head_dim);
    fill(values_, s.kv_heads * tokens * s.values());
    fill(mean_, s.q_heads * s.head_dim);
    fill(gates_, s.kv_heads * tokens);
    fill(surprise_, tokens);
    for (float& e : surprise_) e = std::abs(e);
    fill(hidden_norms_, tokens);
    for (float& e : hidden_norms_) e = 1.0f + std::abs(e);
    covariance_.assign(static_cast<std::size_t>(s.q_heads * s.head_dim * s.head_dim), 0.0f);
    for (index_t i = 0; i < s.q_heads * s.head_dim; ++i)
      covariance_[static_cast<std::size_t>(i * s.head_dim + i % s.head_dim)] = 0.1f;
    for (index_t t = 0; t < tokens; ++t) classes_.push_back(static_cast<TokenClass>(random() % 3));
  }

  StepInputs inputs(const AttentionView& attention = {}) const {
    const index_t q = shape_.q_heads, kv = shape_.kv_heads, d = shape_.head_dim;
    return {.attention = attention,
            .queries = dense_view(queries_.data(), q, tokens_, d),
            .raw_queries = dense_view(raw_queries_.data(), q, tokens_, d),
            .raw_keys = dense_view(raw_keys_.data(), kv, tokens_, d),
            .values = dense_view(values_.data(), kv, tokens_, shape_.values()),
            .query_mean = dense_view(mean_.data(), q, d),
            .query_covariance = dense_view(covariance_.data(), q, d, d),
            .gates = dense_view(gates_.data(), kv, tokens_),
            .surprise = surprise_,
            .classes = classes_,
            .hidden_norms = hidden_norms_};
  }

 private:
  CacheShape shape_;
  index_t tokens_;
  std::vector<float> queries_, raw_queries_, raw_keys_, values_, mean_, covariance_, gates_, surprise_, hidden_norms_;
  std::vector<TokenClass> classes_;
};

}  // namespace kvcondense::test
