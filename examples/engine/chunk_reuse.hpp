#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <engine/decoder.hpp>
#include <engine/rope.hpp>
#include <kvcondense/backend/cpu/attend.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/dense_head.hpp>
#include <kvcondense/backend/cpu/rope.hpp>
#include <kvcondense/backend/cpu/row_deviation.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/reuse/cache_craft.hpp>
#include <kvcondense/reuse/cacheblend.hpp>
#include <kvcondense/reuse/pie.hpp>

// Keys and values of text chunks, made once and used in prompts that have them at other places.

namespace engine {

/// Keys or values of some tokens in one layer: [kv_heads, tokens, dim].
struct RowArray {
  std::vector<float> data;
  index_t heads = 0, tokens = 0, dim = 0;

  void resize(index_t h, index_t t, index_t d) {
    heads = h, tokens = t, dim = d;
    data.resize(static_cast<std::size_t>(h * t * d));
  }
  TensorView<float, 3> view() { return kvcondense::dense_view(data.data(), heads, tokens, dim); }
  TensorView<const float, 3> view() const { return kvcondense::dense_view(data.data(), heads, tokens, dim); }
  /// Of tokens [begin, end).
  template <class Self>
  static auto part(Self& self, index_t begin, index_t end) {
    auto v = self.view();
    v.data += begin * v.stride[1];
    v.extent[1] = end - begin;
    return v;
  }
};

/// A chunk of text with its keys and values, as they were behind some prefix.
struct StoredChunk {
  kvcondense::reuse::ChunkId id = 0;
  std::vector<std::int32_t> tokens;
  index_t position = 0;                ///< of its first token when it was made
  std::vector<RowArray> keys, values;  ///< of each layer; keys are rotated
  // What it looked at then, for Cache-Craft.
  std::vector<kvcondense::reuse::ChunkId> prefix;
  std::vector<double> inter;        ///< attention to each chunk of the prefix, all layers together
  std::vector<double> token_inter;  ///< the same per token of this chunk, to all of them
  double context = 0.5;

  index_t size() const { return static_cast<index_t>(tokens.size()); }
  kvcondense::reuse::ChunkVariant variant() const { return {prefix, inter, context}; }
};

/// Copies rows of one view into another of the same shape.
inline void copy_rows(TensorView<const float, 3> from, TensorView<float, 3> to) {
  for (index_t h = 0; h < from.extent[0]; ++h)
    for (index_t t = 0; t < from.extent[1]; ++t) std::copy_n(&from(h, t, 0), from.extent[2], &to(h, t, 0));
}

/// Attention of chosen rows over dense arrays, each row at its own position.
class PositionedAttention {
 public:
  /// queries [q_heads, rows, dim] stand at `positions`; lse may be empty.
  Status run(TensorView<const float, 3> queries, TensorView<const float, 3> keys, TensorView<const float, 3> values,
             std::span<const index_t> positions, TensorView<float, 3> out, TensorView<float, 2> lse = {}) {
    namespace prim = kvcondense::prim;
    const index_t kv = keys.extent[0], rows = queries.extent[0] / kv * queries.extent[1];
    const auto need = prim::Attend<kvcondense::Cpu>::workspace_bytes(1, kv, rows, keys.extent[1], queries.extent[2], values.extent[2], false);
    if (const Status s = scratch_.reserve(need); s != Status::ok) return s;
    kvcondense::Context<kvcondense::Cpu> context(scratch_.bytes());
    prim::AttendRequest request{queries, out, lse};
    request.softmax_scale = 1.0f / std::sqrt(static_cast<float>(queries.extent[2]));
    return prim::Attend<kvcondense::Cpu>::run(context, request, kv, [&](index_t h) { return prim::DenseHead{keys, values, h, positions.data()}; });
  }

 private:
  kvcondense::Workspace scratch_;
};

/// Runs a prompt of chunks in full and keeps the keys, values and attention shares of each.
inline Expected<std::vector<StoredChunk>> store_chunks(const Model& model, const std::vector<std::pair<kvcondense::reuse::ChunkId, std::vector<std::int32_t>>>& chunks) {
  namespace reuse = kvcondense::reuse;
  const ModelConfig& c = model.config;
  std::vector<StoredChunk> stored;
  std::vector<std::int32_t> all;
  for (const auto& [id, tokens] : chunks) {
    StoredChunk s;
    s.id = id, s.tokens = tokens, s.position = static_cast<index_t>(all.size());
    for (const StoredChunk& earlier : stored) s.prefix.push_back(earlier.id);
    s.inter.assign(stored.size(), 0.0), s.token_inter.assign(tokens.size(), 0.0);
    s.keys.resize(static_cast<std::size_t>(c.layers)), s.values.resize(s.keys.size());
    all.insert(all.end(), tokens.begin(), tokens.end());
    stored.push_back(std::move(s));
  }
  const auto n = static_cast<index_t>(all.size());
  std::vector<index_t> positions(all.size());
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<std::vector<double>> outside(stored.size()), inside(stored.size());
  PositionedAttention attention;
  std::vector<float> ignored(static_cast<std::size_t>(c.q_heads * n * c.head_dim)), lse(static_cast<std::size_t>(c.q_heads * n)), lse_part(lse.size());

  const Attention record = [&](const LayerChunk& layer, TensorView<float, 3> out) {
    const auto whole = kvcondense::dense_view(lse.data(), c.q_heads, n);
    if (const Status s = attention.run(layer.q, layer.k, layer.v, positions, out, whole); s != Status::ok) return s;
    for (std::size_t i = 0; i < stored.size(); ++i) {
      StoredChunk& chunk = stored[i];
      const auto l = static_cast<std::size_t>(layer.layer);
      const auto rows = [](TensorView<const float, 3> v, index_t begin, index_t count) {
        v.data += begin * v.stride[1];
        v.extent[1] = count;
        return v;
      };
      chunk.keys[l].resize(c.kv_heads, chunk.size(), c.head_dim), chunk.values[l].resize(c.kv_heads, chunk.size(), c.head_dim);
      copy_rows(rows(layer.k, chunk.position, chunk.size()), chunk.keys[l].view());
      copy_rows(rows(layer.v, chunk.position, chunk.size()), chunk.values[l].view());
      // What part of each token's attention went to each earlier chunk: by the lse over it alone.
      std::vector<double> to(i, 0.0);
      std::vector<index_t> sizes;
      double looked_back = 0.0;
      for (std::size_t j = 0; j < i; ++j) {
        const std::vector<index_t> everything(static_cast<std::size_t>(chunk.size()), stored[j].size() - 1);
        sizes.push_back(stored[j].size());
        const auto part = kvcondense::dense_view(lse_part.data(), c.q_heads, chunk.size());
        const auto nowhere = kvcondense::dense_view(ignored.data(), c.q_heads, chunk.size(), c.head_dim);
        if (const Status s = attention.run(rows(layer.q, chunk.position, chunk.size()), rows(layer.k, stored[j].position, stored[j].size()),
                                           rows(layer.v, stored[j].position, stored[j].size()), everything, nowhere, part);
            s != Status::ok)
          return s;
        for (index_t h = 0; h < c.q_heads; ++h)
          for (index_t t = 0; t < chunk.size(); ++t) {
            const double share = reuse::attention_share(static_cast<double>(part(h, t)), static_cast<double>(whole(h, chunk.position + t))) / static_cast<double>(c.q_heads);
            to[j] += share, chunk.token_inter[static_cast<std::size_t>(t)] += share;
          }
        chunk.inter[j] += to[j], looked_back += to[j];
      }
      outside[i].push_back(reuse::CacheCraft::outside(to, sizes, chunk.size()));
      inside[i].push_back(reuse::CacheCraft::inside(static_cast<double>(chunk.size()) - looked_back, chunk.size()));
    }
    return Status::ok;
  };
  Decoder decoder(model, {.chunk = std::max<index_t>(n, 1)});
  const auto logits = decoder.forward(all, 0, record);
  if (!logits) return logits.status();
  for (std::size_t i = 0; i < stored.size(); ++i) stored[i].context = reuse::CacheCraft::context(outside[i], inside[i]);
  return stored;
}

/// A prompt of stored chunks and a question, of which only some tokens are computed.
class ChunkPrompt {
 public:
  /// Sees every layer's keys and values of the whole prompt, and the question's queries: what a cache is filled with.
  using Layer = std::function<Status(index_t layer, TensorView<const float, 3> keys, TensorView<const float, 3> values, TensorView<const float, 3> question)>;

  ChunkPrompt(const Model& model, std::vector<const StoredChunk*> chunks) : model_(&model), chunks_(std::move(chunks)) {}

  /// CacheBlend: the first layers in full, then the tokens whose keys and values moved most.
  Expected<std::span<const float>> blend(const kvcondense::reuse::CacheBlend& method, std::span<const std::int32_t> question, const Layer& fill = nullptr) {
    blend_ = &method;
    return run(question, everything(question), fill);
  }
  /// Cache-Craft: of every chunk the tokens that looked back most when it was made, in all layers.
  Expected<std::span<const float>> craft(const kvcondense::reuse::CacheCraft& method, std::span<const std::int32_t> question, const Layer& fill = nullptr) {
    namespace reuse = kvcondense::reuse;
    blend_ = nullptr;
    std::vector<index_t> rows;
    std::vector<reuse::ChunkId> before;
    index_t at = 0;
    for (const StoredChunk* chunk : chunks_) {
      std::vector<index_t> chosen(static_cast<std::size_t>(reuse::CacheCraft::tokens(method.fraction(chunk->variant(), before), chunk->size())));
      if (const Status s = reuse::CacheCraft::pick(chunk->token_inter, chosen); s != Status::ok) return s;
      for (const index_t t : chosen) rows.push_back(at + t);
      at += chunk->size();
      before.push_back(chunk->id);
    }
    for (std::size_t i = 0; i < question.size(); ++i) rows.push_back(at++);
    return run(question, std::move(rows), fill);
  }

  /// Rows that attention was computed for, of all rows of all layers without the question.
  double computed() const { return all_rows_ == 0 ? 0.0 : static_cast<double>(computed_rows_) / static_cast<double>(all_rows_); }

 private:
  index_t stored_tokens() const {
    index_t n = 0;
    for (const StoredChunk* c : chunks_) n += c->size();
    return n;
  }
  std::vector<index_t> everything(std::span<const std::int32_t> question) const {
    std::vector<index_t> rows(static_cast<std::size_t>(stored_tokens()) + question.size());
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  }

  Expected<std::span<const float>> run(std::span<const std::int32_t> question, std::vector<index_t> rows, const Layer& fill) {
    if (question.empty()) return Status::invalid_argument;
    rows_ = std::move(rows);
    computed_rows_ = all_rows_ = 0;
    std::vector<std::int32_t> tokens;
    for (const StoredChunk* c : chunks_) tokens.insert(tokens.end(), c->tokens.begin(), c->tokens.end());
    tokens.insert(tokens.end(), question.begin(), question.end());
    std::vector<std::int32_t> first;
    for (const index_t r : rows_) first.push_back(tokens[static_cast<std::size_t>(r)]);
    decoder_.emplace(*model_, DecoderOptions{.go_on = [this](index_t) { return std::span<const index_t>(go_on_); }});
    const auto suffix = static_cast<index_t>(question.size());
    return decoder_->forward_at(first, rows_, [&](const LayerChunk& chunk, TensorView<float, 3> out) { return layer(chunk, suffix, fill, out); });
  }

  Status layer(const LayerChunk& chunk, index_t suffix, const Layer& fill, TensorView<float, 3> out) {
    namespace reuse = kvcondense::reuse;
    const ModelConfig& c = model_->config;
    const index_t total = stored_tokens() + suffix;
    keys_.resize(c.kv_heads, total, c.head_dim), values_.resize(c.kv_heads, total, c.head_dim);
    if (const Status s = place_stored(chunk.layer); s != Status::ok) return s;

    const auto put = [&](TensorView<const float, 3> from, TensorView<float, 3> to) {
      for (index_t h = 0; h < c.kv_heads; ++h)
        for (std::size_t i = 0; i < rows_.size(); ++i) std::copy_n(&from(h, static_cast<index_t>(i), 0), c.head_dim, &to(h, rows_[i], 0));
    };
    go_on_.clear();
    std::vector<index_t> keep = rows_;
    if (blend_ != nullptr && blend_->compares(chunk.layer)) {
      const auto n = static_cast<index_t>(rows_.size());
      old_keys_.resize(c.kv_heads, n, c.head_dim), old_values_.resize(c.kv_heads, n, c.head_dim);
      for (index_t h = 0; h < c.kv_heads; ++h)
        for (index_t i = 0; i < n; ++i) {
          std::copy_n(&keys_.view()(h, rows_[static_cast<std::size_t>(i)], 0), c.head_dim, &old_keys_.view()(h, i, 0));
          std::copy_n(&values_.view()(h, rows_[static_cast<std::size_t>(i)], 0), c.head_dim, &old_values_.view()(h, i, 0));
        }
      if (const Status s = scratch_.reserve(reuse::CacheBlend::workspace_bytes(n) + kvcondense::Scratch::align); s != Status::ok) return s;
      kvcondense::Context<kvcondense::Cpu> context;
      index_t count = 0;
      const RowArray &ok = old_keys_, &ov = old_values_;
      if (const Status s = blend_->choose(context, chunk.layer, total, suffix, {chunk.k, chunk.v}, {ok.view(), ov.view()}, keep, count, kvcondense::Scratch(scratch_.bytes()));
          s != Status::ok)
        return s;
      keep.resize(static_cast<std::size_t>(count));
      for (std::size_t i = 0, k = 0; i < rows_.size() && k < keep.size(); ++i)
        if (rows_[i] == keep[k]) go_on_.push_back(static_cast<index_t>(i)), ++k;
    }
    // Fresh rows replace reused ones; at the layer that compares all of them do.
    put(chunk.k, keys_.view()), put(chunk.v, values_.view());

    // Attention of the rows that go on, each at its position. The decoder drops the others.
    const auto rows = static_cast<index_t>(keep.size());
    queries_.resize(c.q_heads, rows, c.head_dim), mixed_.resize(c.q_heads, rows, c.head_dim);
    const auto row_of = [&](index_t i) { return go_on_.empty() ? i : go_on_[static_cast<std::size_t>(i)]; };
    for (index_t h = 0; h < c.q_heads; ++h)
      for (index_t i = 0; i < rows; ++i) std::copy_n(&chunk.q(h, row_of(i), 0), c.head_dim, &queries_.view()(h, i, 0));
    const RowArray &q = queries_, &k = keys_, &v = values_;
    if (const Status s = attention_.run(q.view(), k.view(), v.view(), keep, mixed_.view()); s != Status::ok) return s;
    for (index_t h = 0; h < c.q_heads; ++h)
      for (index_t i = 0; i < rows; ++i) std::copy_n(&mixed_.view()(h, i, 0), c.head_dim, &out(h, row_of(i), 0));
    computed_rows_ += rows - suffix, all_rows_ += total - suffix;
    rows_ = std::move(keep);
    if (!fill) return Status::ok;
    return fill(chunk.layer, k.view(), v.view(), RowArray::part(q, rows - suffix, rows));
  }

  /// Stored rows of a layer at their new positions.
  Status place_stored(index_t layer) {
    const ModelConfig& c = model_->config;
    const auto angles = kvcondense::prim::rope_angles(library_rope(c.rope, 0), c.head_dim);
    if (!angles) return angles.status();
    kvcondense::Context<kvcondense::Cpu> context;
    index_t at = 0;
    for (const StoredChunk* chunk : chunks_) {
      const auto l = static_cast<std::size_t>(layer);
      const auto to = RowArray::part(keys_, at, at + chunk->size());
      if (const Status s = kvcondense::reuse::Pie::turn(context, *angles, chunk->keys[l].view(), at - chunk->position, to); s != Status::ok) return s;
      copy_rows(chunk->values[l].view(), RowArray::part(values_, at, at + chunk->size()));
      at += chunk->size();
    }
    return Status::ok;
  }

  const Model* model_;
  std::vector<const StoredChunk*> chunks_;
  const kvcondense::reuse::CacheBlend* blend_ = nullptr;
  std::optional<Decoder> decoder_;
  PositionedAttention attention_;
  kvcondense::Workspace scratch_;
  std::vector<index_t> rows_, go_on_;
  RowArray keys_, values_, old_keys_, old_values_, queries_, mixed_;
  index_t computed_rows_ = 0, all_rows_ = 0;
};

}  // namespace engine
