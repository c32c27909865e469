#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/step_inputs.hpp>

namespace kvcondense::bench {

constexpr CacheShape shape{.layers = 4, .q_heads = 32, .kv_heads = 8, .head_dim = 128};

/// Normal numbers, drawn once; runs of them begin anywhere, so that no two rows of keys are alike.
class Noise {
 public:
  Noise() : numbers_(std::size_t{1} << 22) {
    std::normal_distribution<float> normal;
    for (float& e : numbers_) e = normal(random_);
  }
  const float* run(index_t n) { return numbers_.data() + random_() % (numbers_.size() - static_cast<std::size_t>(n)); }

 private:
  std::mt19937 random_{1};
  std::vector<float> numbers_;
};
inline Noise& noise() {
  static Noise one;
  return one;
}
inline void draw(std::vector<float>& x, index_t n) {
  const float* from = noise().run(n);
  x.assign(from, from + n);
}
inline void draw_positive(std::vector<float>& x) {
  const float* from = noise().run(static_cast<index_t>(x.size()));
  std::transform(from, from + x.size(), x.begin(), [](float e) { return std::abs(e); });
}

/// A few tokens, and all that a step may be told of them.
class TokenData {
 public:
  TokenData() {
    bench::draw(mean_, shape.q_heads * shape.head_dim);
    covariance_.resize(static_cast<std::size_t>(shape.q_heads * shape.head_dim * shape.head_dim));
    for (index_t i = 0; i < shape.q_heads * shape.head_dim; ++i)
      covariance_[static_cast<std::size_t>(i * shape.head_dim + i % shape.head_dim)] = 0.1f;
  }

  void draw(index_t tokens) {
    tokens_ = tokens;
    bench::draw(queries_, shape.q_heads * tokens * shape.head_dim);
    bench::draw(keys_, shape.kv_heads * tokens * shape.head_dim);
    bench::draw(values_, shape.kv_heads * tokens * shape.head_dim);
    bench::draw(gates_, shape.kv_heads * tokens);
    surprise_.resize(static_cast<std::size_t>(tokens));
    draw_positive(surprise_);
    hidden_norms_.assign(surprise_.size(), 1.0f);
    out_.resize(queries_.size());
    classes_.clear();  // one token in 64 is special, one in 8 punctuation
    for (index_t t = 0; t < tokens; ++t, ++seen_)
      classes_.push_back(seen_ % 64 == 0 ? TokenClass::special : seen_ % 8 == 0 ? TokenClass::punctuation : TokenClass::plain);
  }

  TensorView<const float, 3> queries() const { return dense_view(queries_.data(), shape.q_heads, tokens_, shape.head_dim); }
  TensorView<const float, 3> keys() const { return dense_view(keys_.data(), shape.kv_heads, tokens_, shape.head_dim); }
  TensorView<const float, 3> values() const { return dense_view(values_.data(), shape.kv_heads, tokens_, shape.head_dim); }
  TensorView<float, 3> out() { return dense_view(out_.data(), shape.q_heads, tokens_, shape.head_dim); }
  StepInputs inputs(const AttentionView& attention) const {
    return {.attention = attention,
            .queries = queries(),
            .raw_queries = queries(),
            .raw_keys = keys(),
            .values = values(),
            .query_mean = dense_view(mean_.data(), shape.q_heads, shape.head_dim),
            .query_covariance = dense_view(covariance_.data(), shape.q_heads, shape.head_dim, shape.head_dim),
            .gates = dense_view(gates_.data(), shape.kv_heads, tokens_),
            .surprise = surprise_,
            .classes = classes_,
            .hidden_norms = hidden_norms_};
  }

 private:
  index_t tokens_ = 0, seen_ = 0;
  std::vector<float> queries_, keys_, values_, mean_, covariance_, gates_, surprise_, hidden_norms_, out_;
  std::vector<TokenClass> classes_;
};

/// What methods ask of a model, of a usual size.
class Model {
 public:
  Model() {
    constexpr index_t heads = shape.layers * shape.kv_heads, row = shape.q_heads * shape.head_dim;
    for (std::vector<float>* x : {&gates_, &induction_, &echo_}) x->resize(static_cast<std::size_t>(heads)), draw_positive(*x);
    shares_.assign(static_cast<std::size_t>(heads), 1.0f / static_cast<float>(heads));
    for (std::size_t i = 0; i < shares_.size(); i += 2) shares_[i] *= 1.5f, shares_[i + 1] *= 0.5f;
    evicted_.assign(static_cast<std::size_t>(shape.layers), 0.5f), variance_ = evicted_;
    facts_.gates = table(gates_), facts_.induction = table(induction_), facts_.echo = table(echo_), facts_.shares = table(shares_);
    facts_.evicted = {evicted_.data(), shape.layers}, facts_.variance = {variance_.data(), shape.layers};
    facts_.output = matrices(output_, row, row);
    facts_.retain_in = matrices(retain_in_, row + 2 * shape.kv_heads * shape.head_dim, 1024);
    facts_.retain_out = matrices(retain_out_, 1024, shape.kv_heads);
    bench::draw(filters_, heads * shape.head_dim);
    facts_.query_filters = {filters_.data(), shape.layers, shape.kv_heads, shape.head_dim};
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const any::ModelFacts& facts() const { return facts_; }

 private:
  struct Stack {
    std::vector<float> numbers;
    std::vector<const float*> at;
  };
  static HeadTable table(const std::vector<float>& x) { return {x.data(), shape.layers, shape.kv_heads}; }
  /// Each layer's is its own, and cold when its turn comes.
  static LayerMatrices matrices(Stack& s, index_t rows, index_t columns) {
    s.numbers.reserve(static_cast<std::size_t>(shape.layers * rows * columns));
    while (s.numbers.size() < s.numbers.capacity()) {
      const index_t n = std::min<index_t>(1 << 16, static_cast<index_t>(s.numbers.capacity() - s.numbers.size()));
      const float* from = noise().run(n);
      s.numbers.insert(s.numbers.end(), from, from + n);
    }
    for (index_t l = 0; l < shape.layers; ++l) s.at.push_back(s.numbers.data() + l * rows * columns);
    return {s.at.data(), shape.layers, rows, columns};
  }

  std::vector<float> gates_, induction_, echo_, shares_, evicted_, variance_, filters_;
  Stack output_, retain_in_, retain_out_;
  any::ModelFacts facts_;
};

}  // namespace kvcondense::bench
