#pragma once

#include <memory>
#include <random>
#include <vector>

#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/core/shape.hpp>
#include <support/random_bases.hpp>

namespace kvcondense::test {

/// Random numbers for everything that recipes may want to know of a model; outlives its caches.
class RandomModel {
 public:
  explicit RandomModel(const CacheShape& s, std::uint32_t seed = 1) : random_(seed) {
    for (std::vector<float>* table : {&gates_, &induction_, &echo_, &shares_}) fill(*table, s.layers * s.kv_heads, 0.01f);
    float sum = 0;
    for (const float x : shares_) sum += x;
    for (float& x : shares_) x /= sum;
    for (std::vector<float>* table : {&evicted_, &variance_}) fill(*table, s.layers, 0.2f);
    facts_.evicted = {evicted_.data(), s.layers}, facts_.variance = {variance_.data(), s.layers};
    const auto head_table = [&](const std::vector<float>& t) { return HeadTable{t.data(), s.layers, s.kv_heads}; };
    facts_.gates = head_table(gates_), facts_.induction = head_table(induction_);
    facts_.echo = head_table(echo_), facts_.shares = head_table(shares_);
    for (std::vector<float>* rows : {&lower_, &upper_}) fill(*rows, s.layers * s.kv_heads * s.head_dim, 0.1f);
    for (float& x : lower_) x = -2.0f - x;
    for (float& x : upper_) x = 2.0f + x;
    facts_.key_lower = {lower_.data(), s.layers, s.kv_heads, s.head_dim};
    facts_.key_upper = {upper_.data(), s.layers, s.kv_heads, s.head_dim};
    for (auto* books : {&key_books_, &value_books_}) {  // 4 stages of 64 words, or 16 of 16, ...
      fill(*books, s.layers * s.kv_heads * 256 * (books == &key_books_ ? s.head_dim : s.values()), -1.0f);
      for (float& x : *books) x *= 0.1f;
    }
    fill(filters_, s.layers * s.kv_heads * s.head_dim, -1.0f);
    facts_.query_filters = {filters_.data(), s.layers, s.kv_heads, s.head_dim};
    facts_.key_books = {key_books_.data(), s.layers, s.kv_heads, 256 * s.head_dim};
    facts_.value_books = {value_books_.data(), s.layers, s.kv_heads, 256 * s.values()};
    constexpr index_t hidden = 24;
    facts_.output = matrices(output_, s.layers, 40, s.q_heads * s.values());
    facts_.retain_in = matrices(retain_in_, s.layers, s.q_heads * s.head_dim + s.kv_heads * (s.head_dim + s.values()), hidden);
    facts_.retain_out = matrices(retain_out_, s.layers, hidden, s.kv_heads);
    // Orthonormal or not, centred or not.
    for (const char* word : {"pca", "matryoshka", "cskv", "eigen_attention", "palu", "weight_svd", "lorc", "recalkv"}) {
      const bool mean = bases_.size() % 4 == 0, pair = *word == 'c';
      const std::string_view name(word);
      const bool raw = name == "palu" || name == "weight_svd" || name == "lorc" || name == "recalkv";
      for (const index_t dim : {s.head_dim, s.values()})
        bases_.push_back(std::make_unique<RandomBases>(s.layers, s.kv_heads, dim, random_(), mean, pair));
      named_.push_back({word, bases_[bases_.size() - 2]->view(raw ? KeyForm::raw : KeyForm::rotated), bases_.back()->view()});
    }
    const index_t share = s.kv_heads % 2 == 0 ? 2 : 1;  // of heads side by side
    for (const index_t dim : {s.head_dim, s.values()})
      bases_.push_back(std::make_unique<RandomBases>(s.layers, s.kv_heads / share, share * dim, 71, false));
    named_.push_back({"kv_heads_svd", bases_[bases_.size() - 2]->view(KeyForm::raw), bases_.back()->view()});
    facts_.bases = {named_.data(), static_cast<index_t>(named_.size())};
    facts_.key_codes = matrices(key_codes_, s.layers, s.kv_heads * 12, s.head_dim);
    facts_.key_metric = matrices(key_metric_, s.layers, s.kv_heads * s.head_dim, s.head_dim);
    facts_.key_axes = matrices(key_axes_, s.layers, s.kv_heads * s.head_dim, s.head_dim);
    facts_.query_axes = matrices(query_axes_, s.layers, s.kv_heads * s.head_dim, s.head_dim);
    fill(planes_, 12 * 3 * s.head_dim, -1.0f);
    facts_.hash_planes = {planes_.data(), 12, 3, s.head_dim};
  }
  RandomModel(const RandomModel&) = delete;
  RandomModel& operator=(const RandomModel&) = delete;

  const any::ModelFacts& facts() const { return facts_; }

 private:
  struct Stack {
    std::vector<std::vector<float>> rows;
    std::vector<const float*> at;
  };
  void fill(std::vector<float>& x, index_t size, float least) {
    std::uniform_real_distribution<float> draw(least, 1.0f);
    x.resize(static_cast<std::size_t>(size));
    for (float& e : x) e = draw(random_);
  }
  LayerMatrices matrices(Stack& s, index_t layers, index_t rows, index_t columns) {
    s.rows.resize(static_cast<std::size_t>(layers));
    for (auto& m : s.rows) fill(m, rows * columns, -1.0f), s.at.push_back(m.data());
    return {s.at.data(), layers, rows, columns};
  }

  std::mt19937 random_;
  std::vector<float> gates_, induction_, echo_, shares_, evicted_, variance_, lower_, upper_, key_books_, value_books_, filters_, planes_;
  Stack output_, retain_in_, retain_out_, key_codes_, key_metric_, key_axes_, query_axes_;
  std::vector<std::unique_ptr<RandomBases>> bases_;
  std::vector<NamedBases> named_;
  any::ModelFacts facts_;
};

}  // namespace kvcondense::test
