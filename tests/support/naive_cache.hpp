#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::test {

/// Numbers of one append: keys [kv_heads, n, head_dim], values, queries [q_heads, n, head_dim].
struct Tokens {
  index_t n = 0;
  std::vector<float> k, v, q;

  Tokens(const CacheShape& s, index_t count, std::mt19937& random, float spread = 1.0f) : n(count) {
    std::normal_distribution<float> normal(0.0f, spread);
    const auto fill = [&](std::vector<float>& x, index_t size) {
      x.resize(static_cast<std::size_t>(size));
      for (float& e : x) e = normal(random);
    };
    fill(k, s.kv_heads * n * s.head_dim);
    fill(v, s.kv_heads * n * s.values());
    fill(q, s.q_heads * n * s.head_dim);
  }
  TensorView<const float, 3> keys(const CacheShape& s) const { return dense_view(k.data(), s.kv_heads, n, s.head_dim); }
  TensorView<const float, 3> values(const CacheShape& s) const { return dense_view(v.data(), s.kv_heads, n, s.values()); }
  TensorView<const float, 3> queries(const CacheShape& s) const { return dense_view(q.data(), s.q_heads, n, s.head_dim); }
};

/// One slot as a cache so simple that it cannot be wrong keeps it.
struct NaiveSlot {
  index_t token = 0;
  std::vector<double> k, v;
  double bias = 0, value_scale = 1;
};

/// slots[layer][head], everything in double, nothing shared, nothing packed.
struct NaiveCache {
  CacheShape shape;
  index_t seen = 0;
  std::vector<std::vector<std::vector<NaiveSlot>>> slots;

  explicit NaiveCache(const CacheShape& s)
      : shape(s),
        slots(static_cast<std::size_t>(s.layers),
              std::vector<std::vector<NaiveSlot>>(static_cast<std::size_t>(s.kv_heads))) {}

  std::vector<NaiveSlot>& head(index_t layer, index_t h) {
    return slots[static_cast<std::size_t>(layer)][static_cast<std::size_t>(h)];
  }

  void append(index_t layer, const Tokens& t, index_t first) {
    for (index_t h = 0; h < shape.kv_heads; ++h)
      for (index_t i = 0; i < t.n; ++i) {
        NaiveSlot s;
        s.token = first + i;
        for (index_t d = 0; d < shape.head_dim; ++d) s.k.push_back(t.keys(shape)(h, i, d));
        for (index_t d = 0; d < shape.values(); ++d) s.v.push_back(t.values(shape)(h, i, d));
        head(layer, h).push_back(s);
      }
  }
};

/// Softmax attention of one query over slots, in double. `mass` (may be null) gets the probabilities.
inline std::vector<double> naive_attention(const std::vector<double>& q, const std::vector<NaiveSlot>& slots,
                                           index_t visible, double scale, std::size_t value_dim,
                                           std::vector<double>* mass = nullptr, double* lse = nullptr) {
  std::vector<double> l;
  double top = -INFINITY, sum = 0;
  for (index_t j = 0; j < visible; ++j) {
    const NaiveSlot& slot = slots[static_cast<std::size_t>(j)];
    double dot[2] = {0, 0};  // two sums: each waits for its last product
    std::size_t d = 0;
    for (; d + 1 < q.size(); d += 2) dot[0] += q[d] * slot.k[d], dot[1] += q[d + 1] * slot.k[d + 1];
    if (d < q.size()) dot[0] += q[d] * slot.k[d];
    l.push_back((dot[0] + dot[1]) * scale + slot.bias);
    top = std::max(top, l.back());
  }
  for (double& x : l) sum += x = std::exp(x - top);
  std::vector<double> out(value_dim, 0.0);
  for (std::size_t j = 0; j < l.size(); ++j) {
    const double weight = l[j] / sum * slots[j].value_scale;
    for (std::size_t d = 0; d < value_dim; ++d) out[d] += weight * slots[j].v[d];
  }
  if (mass != nullptr)
    for (std::size_t j = 0; j < l.size(); ++j) (*mass)[j] += l[j] / sum;
  if (lse != nullptr) *lse = top + std::log(sum);
  return out;
}

}  // namespace kvcondense::test
