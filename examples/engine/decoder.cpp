#include <engine/decoder.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>

#include <engine/tokenizer.hpp>

namespace engine {
namespace {

float* room(std::vector<float>& buffer, index_t size) {
  buffer.resize(static_cast<std::size_t>(size));
  return buffer.data();
}

void rms_norm(const float* x, const std::vector<float>& weight, double eps, index_t rows,
              float* out) {
  const auto width = static_cast<index_t>(weight.size());
  for (index_t r = 0; r < rows; ++r) {
    const float* row = x + r * width;
    double squares = 0;
    for (index_t i = 0; i < width; ++i) squares += static_cast<double>(row[i]) * row[i];
    const auto scale =
        static_cast<float>(1 / std::sqrt(squares / static_cast<double>(width) + eps));
    for (index_t i = 0; i < width; ++i)
      out[r * width + i] = row[i] * scale * weight[static_cast<std::size_t>(i)];
  }
}

void add(const std::vector<float>& delta, std::vector<float>& to) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += delta[i];
}

/// Rows [tokens, heads, dim], as projections write them, seen as [heads, tokens, dim].
template <class T>
TensorView<T, 3> by_head(T* rows, index_t heads, index_t tokens, index_t dim) {
  return {rows, {heads, tokens, dim}, {dim, heads * dim, 1}};
}

}  // namespace

/// The hidden state, the positions and what attention gave, of these rows only.
void Decoder::keep_rows(std::span<const index_t> rows) {
  const auto keep = [&](auto& all) {
    const std::size_t width = all.size() / positions_.size();
    for (std::size_t i = 0; i < rows.size(); ++i)
      std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(rows[i]) * width), width,
                  all.begin() + static_cast<std::ptrdiff_t>(i * width));
    all.resize(rows.size() * width);
  };
  keep(hidden_), keep(mixed_), keep(classes_);
  if (options_.rotate) keep(rope_.cos), keep(rope_.sin);
  keep(positions_);  // last: the others are measured by it
}

Status Decoder::layer(index_t index, index_t& tokens, Phase phase, const Attention& attention) {
  const ModelConfig& c = model_->config;
  const LayerWeights& w = model_->layers[static_cast<std::size_t>(index)];
  const index_t q_width = c.q_heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;

  float* normed = room(normed_, tokens * c.hidden);
  rms_norm(hidden_.data(), w.attention_norm, c.rms_norm_eps, tokens, normed);
  float* q = room(q_, tokens * q_width);
  float* k = room(k_, tokens * kv_width);
  float* v = room(v_, tokens * kv_width);
  w.q.multiply(normed, tokens, q);
  w.k.multiply(normed, tokens, k);
  w.v.multiply(normed, tokens, v);
  const float *raw_q = options_.keep_raw ? q : nullptr, *raw_k = options_.keep_raw ? k : nullptr;
  if (options_.rotate && options_.keep_raw) {
    raw_q_ = q_, raw_k_ = k_;
    raw_q = raw_q_.data(), raw_k = raw_k_.data();
  }
  if (options_.rotate) {
    rotate(c.rope, rope_, tokens, c.q_heads, c.head_dim, q);
    rotate(c.rope, rope_, tokens, c.kv_heads, c.head_dim, k);
  }

  float* mixed = room(mixed_, tokens * q_width);
  const LayerChunk chunk{index,
                         by_head<const float>(q, c.q_heads, tokens, c.head_dim),
                         by_head<const float>(k, c.kv_heads, tokens, c.head_dim),
                         by_head<const float>(v, c.kv_heads, tokens, c.head_dim),
                         positions_,
                         phase,
                         by_head(raw_q, c.q_heads, tokens, c.head_dim),
                         by_head(raw_k, c.kv_heads, tokens, c.head_dim),
                         classes_};
  if (const Status s = attention(chunk, by_head(mixed, c.q_heads, tokens, c.head_dim));
      s != Status::ok)
    return s;
  if (options_.go_on)
    if (const auto rows = options_.go_on(index); !rows.empty()) {
      keep_rows(rows);
      tokens = static_cast<index_t>(rows.size());
    }

  w.o.multiply(mixed, tokens, room(delta_, tokens * c.hidden));
  add(delta_, hidden_);
  feed_forward(w, tokens);
  return Status::ok;
}

void Decoder::feed_forward(const LayerWeights& w, index_t tokens) {
  const ModelConfig& c = model_->config;
  rms_norm(hidden_.data(), w.mlp_norm, c.rms_norm_eps, tokens, normed_.data());
  w.gate.multiply(normed_.data(), tokens, room(gate_, tokens * c.intermediate));
  w.up.multiply(normed_.data(), tokens, room(up_, tokens * c.intermediate));
  for (std::size_t i = 0; i < gate_.size(); ++i) gate_[i] *= up_[i] / (1 + std::exp(-gate_[i]));
  w.down.multiply(gate_.data(), tokens, room(delta_, tokens * c.hidden));
  add(delta_, hidden_);
}

Expected<std::span<const float>> Decoder::forward(std::span<const std::int32_t> tokens,
                                                  index_t first, const Attention& attention,
                                                  Logits which, Phase phase) {
  if (first < 0) return Status::invalid_argument;
  consecutive_.resize(tokens.size());
  std::iota(consecutive_.begin(), consecutive_.end(), first);
  return forward_at(tokens, consecutive_, attention, which, phase);
}

Expected<std::span<const float>> Decoder::forward_at(std::span<const std::int32_t> tokens,
                                                     std::span<const index_t> positions,
                                                     const Attention& attention, Logits which,
                                                     Phase phase) {
  const ModelConfig& c = model_->config;
  auto count = static_cast<index_t>(tokens.size());
  if (count == 0 || positions.size() != tokens.size() || positions.front() < 0) return Status::invalid_argument;
  float* hidden = room(hidden_, count * c.hidden);
  for (index_t t = 0; t < count; ++t) {
    const index_t token = tokens[static_cast<std::size_t>(t)];
    if (token < 0 || token >= c.vocab) return Status::out_of_range;
    std::copy_n(model_->embeddings.data() + token * c.hidden, c.hidden, hidden + t * c.hidden);
  }
  positions_.assign(positions.begin(), positions.end());
  classes_.clear();
  if (options_.classes && speaks_bytes(c)) classes_ = byte_classes(tokens, positions.front() == 0);
  if (options_.rotate) rope_.fill(c.rope, positions_);
  for (index_t i = 0; i < c.layers; ++i)
    if (const Status s = layer(i, count, phase, attention); s != Status::ok) return s;

  const index_t rows = which == Logits::all || options_.after_pass ? count : 1;
  hidden = hidden_.data();
  rms_norm(hidden + (count - rows) * c.hidden, model_->norm, c.rms_norm_eps, rows, normed_.data());
  model_->head.multiply(normed_.data(), rows, room(logits_, rows * c.vocab));
  if (options_.after_pass)
    if (const Status s = options_.after_pass(tokens, logits_); s != Status::ok) return s;
  const std::span<const float> all(logits_);
  return which == Logits::all ? all : all.last(static_cast<std::size_t>(c.vocab));
}

Expected<std::span<const float>> Decoder::prefill(std::span<const std::int32_t> tokens,
                                                  index_t first, const Attention& attention,
                                                  const EachChunk& each) {
  const auto count = static_cast<index_t>(tokens.size());
  if (count == 0 || options_.chunk < 1) return Status::invalid_argument;
  const index_t chunks = (count + options_.chunk - 1) / options_.chunk;
  std::span<const float> last;
  for (index_t i = 0; i < chunks; ++i) {
    const index_t at = count * i / chunks, end = count * (i + 1) / chunks;
    const auto chunk =
        tokens.subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(end - at));
    const auto logits = forward(chunk, first + at, attention, each ? Logits::all : Logits::last,
                                end == count ? Phase::prefill_end : Phase::prefill_chunk);
    if (!logits) return logits.status();
    if (each) each(at, *logits);
    last = logits->last(static_cast<std::size_t>(config().vocab));
  }
  return last;
}

}  // namespace engine
