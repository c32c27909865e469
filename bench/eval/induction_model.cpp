#include <eval/induction_model.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace eval {
namespace {

constexpr index_t code_size = 64, vocabulary = 384, head_dim = 128;
/// Where things stand in the residual stream: the token's code, the code of the token before it, the answer, and a one.
constexpr index_t code_at = 0, before_at = 64, answer_at = 128, one_at = 192, hidden = 200;
constexpr index_t intermediate = 8;  // of an MLP of zeros
constexpr double theta = 1e10, sharpness = 20;

/// A matrix of zeros that is filled before it is packed.
struct Matrix {
  index_t out, in;
  std::vector<float> rows = std::vector<float>(static_cast<std::size_t>(out * in), 0.0f);

  void set(index_t o, index_t i, double x) { rows[static_cast<std::size_t>(o * in + i)] = static_cast<float>(x); }
  engine::PackedMatrix packed() const { return {rows, out, in}; }
};

/// The channel of a head where number `i` of a code lies: in slow rotation pairs, which half-split pairs keep together.
index_t slow_channel(index_t i) { return i < code_size / 2 ? code_size / 2 + i : head_dim / 2 + i; }

engine::LayerWeights empty_layer() {
  engine::LayerWeights w;
  w.attention_norm.assign(hidden, 1.0f), w.mlp_norm.assign(hidden, 1.0f);
  w.gate = w.up = Matrix{intermediate, hidden}.packed();
  w.down = Matrix{hidden, intermediate}.packed();
  return w;
}

/// What RMSNorm makes of a number of a row whose squares sum to `squares`.
double normed(double squares) { return std::sqrt(static_cast<double>(hidden) / squares); }

/// So long that the product of two of them, through softmax's scale, is `sharpness`.
double strength() { return std::sqrt(sharpness * std::sqrt(static_cast<double>(head_dim))); }

engine::LayerWeights copies_the_token_before() {
  engine::LayerWeights w = empty_layer();
  const double unit = 1 / normed(2);  // a code and a one
  Matrix q{head_dim, hidden}, k{head_dim, hidden}, v{head_dim, hidden}, o{hidden, head_dim};
  for (index_t pair = 0; pair < code_size / 2; ++pair) {
    const double turn = std::pow(theta, -2.0 * static_cast<double>(pair) / head_dim);
    q.set(pair, one_at, strength() * unit);
    // Keys stand one place ahead, so that a query meets the one before it at distance zero.
    k.set(pair, one_at, strength() * unit * std::cos(turn));
    k.set(pair + head_dim / 2, one_at, strength() * unit * std::sin(turn));
  }
  for (index_t i = 0; i < code_size; ++i) v.set(i, code_at + i, unit), o.set(before_at + i, i, 1);
  w.q = q.packed(), w.k = k.packed(), w.v = v.packed(), w.o = o.packed();
  return w;
}

engine::LayerWeights finds_what_followed() {
  engine::LayerWeights w = empty_layer();
  const double unit = 1 / normed(3);  // two codes and a one
  Matrix q{head_dim, hidden}, k{head_dim, hidden}, v{head_dim, hidden}, o{hidden, head_dim};
  for (index_t i = 0; i < code_size; ++i) {
    q.set(slow_channel(i), code_at + i, strength() * unit);
    k.set(slow_channel(i), before_at + i, strength() * unit);
    v.set(i, code_at + i, unit), o.set(answer_at + i, i, 1);
  }
  w.q = q.packed(), w.k = k.packed(), w.v = v.packed(), w.o = o.packed();
  return w;
}

}  // namespace

InductionModel::InductionModel(std::uint64_t seed) : answer(keys), place(keys) {
  const auto draw = [&](index_t m) {
    seed = (1103515245u * seed + 12345u) % (std::uint64_t{1} << 31);
    return static_cast<index_t>((seed >> 16) % static_cast<std::uint64_t>(m));
  };
  std::vector<std::vector<double>> codes(vocabulary, std::vector<double>(code_size, 0.0));
  for (auto& code : codes) {
    std::vector<index_t> channels;
    while (channels.size() < 4)
      if (const index_t c = draw(code_size); std::find(channels.begin(), channels.end(), c) == channels.end()) channels.push_back(c);
    for (const index_t c : channels) code[static_cast<std::size_t>(c)] = draw(2) == 1 ? 0.5 : -0.5;
  }
  std::vector<std::int32_t> order;
  for (std::int32_t i = 0; i < keys; ++i) order.push_back(i);
  for (index_t i = keys - 1; i >= 1; --i) std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(draw(i + 1))]);
  for (const std::int32_t key : order) {
    context.push_back(key);
    const auto at = static_cast<std::size_t>(key);
    answer[at] = static_cast<std::int32_t>(first_value + draw(values));
    place[at] = static_cast<index_t>(context.size());
    context.push_back(answer[at]);
    for (int other = 0; other < 2; ++other) context.push_back(static_cast<std::int32_t>(first_value + values + draw(128)));
  }

  engine::ModelConfig& c = model.config;
  c.hidden = hidden, c.layers = 2, c.q_heads = c.kv_heads = 1, c.head_dim = head_dim;
  c.intermediate = intermediate, c.vocab = vocabulary, c.max_positions = 4096;
  c.rms_norm_eps = 1e-12;
  c.rope.theta = theta, c.rope.rotary_dim = head_dim;
  Matrix embeddings{vocabulary, hidden}, head{vocabulary, hidden};
  for (index_t t = 0; t < vocabulary; ++t) {
    embeddings.set(t, one_at, 1);
    for (index_t i = 0; i < code_size; ++i) {
      const double x = codes[static_cast<std::size_t>(t)][static_cast<std::size_t>(i)];
      embeddings.set(t, code_at + i, x);
      if (t >= first_value && t < first_value + values) head.set(t, answer_at + i, x);
    }
  }
  model.embeddings = embeddings.rows;
  model.layers.push_back(copies_the_token_before());
  model.layers.push_back(finds_what_followed());
  model.norm.assign(hidden, 1.0f);
  model.head = head.packed();
}

std::int32_t named_value(std::span<const float> logits) {
  const auto first = logits.begin() + InductionModel::first_value;
  return static_cast<std::int32_t>(std::max_element(first, first + InductionModel::values) - logits.begin());
}

}  // namespace eval
