#include <eval/replay.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>

#include <engine/dense_attention.hpp>
#include <eval/error.hpp>

namespace eval {

using kvcondense::Phase;

namespace {

TensorView<float, 3> out_view(const Recording& r, index_t count, float* out) {
  const index_t heads = r.shape.q_heads, dim = r.shape.values();
  return {out, {heads, count, dim}, {dim, heads * dim, 1}};
}

std::size_t row_size(const Recording& r) {
  return static_cast<std::size_t>(r.shape.q_heads * r.shape.values());
}

}  // namespace

std::vector<float> exact_outputs(const Recording& r, const Feeding& feeding, index_t layer) {
  engine::ModelConfig config;
  config.layers = 1;
  config.q_heads = r.shape.q_heads;
  config.kv_heads = r.shape.kv_heads;
  config.head_dim = r.shape.head_dim;
  engine::DenseAttention dense(config);
  const index_t singles = r.tokens - feeding.prefill;
  std::vector<float> out(row_size(r) * static_cast<std::size_t>(singles));
  engine::LayerChunk before = r.chunk(layer, 0, feeding.prefill, {});
  before.q.extent[1] = 0;  // nobody looks at what the prefill's queries see
  engine::LayerChunk after = r.chunk(layer, feeding.prefill, singles, {});
  before.layer = after.layer = 0;
  require(dense(before, out_view(r, 0, out.data())), "exact attention");
  require(dense(after, out_view(r, singles, out.data())), "exact attention");
  return out;
}

void Replay::feed(index_t layer, index_t first, index_t count, index_t position, Phase phase,
                  float* out) {
  positions_.resize(static_cast<std::size_t>(count));
  std::iota(positions_.begin(), positions_.end(), position);
  engine::LayerChunk chunk = recording_->chunk(layer, first, count, positions_, phase);
  if (raw_ != nullptr) {
    const engine::LayerChunk before = raw_->chunk(layer, first, count, positions_, phase);
    chunk.raw_q = before.q, chunk.raw_k = before.k;
  }
  require((*session_)(chunk, out_view(*recording_, count, out)),
          "the cache refused recorded tokens");
}

/// Asks a fork, which nobody feeds any further.
void Replay::count_reads(index_t layer, index_t at, const Recording& rotated, ReadSums& reads) {
  const Recording& r = *recording_;
  const index_t heads = r.shape.q_heads, dim = r.shape.head_dim, slots = session_->cache().slots(layer, 0) + 1;
  auto cache = session_->cache().fork();
  require(cache.status(), "a fork of the cache");
  kvcondense::Workspace work;
  index_t most = slots;
  for (index_t h = 1; h < r.shape.kv_heads; ++h) most = std::max(most, cache->slots(layer, h) + 1);
  require(work.reserve(cache->workspace_bytes(most, 1)), "scratch");
  kvcondense::Context<kvcondense::Cpu> context(work.bytes());
  positions_.assign(1, at);
  const engine::LayerChunk chunk = r.chunk(layer, at, 1, positions_, Phase::decode);
  require(cache->append(context, layer, chunk.k, chunk.v, chunk.positions), "a token");
  std::vector<kvcondense::SlotRun> runs(static_cast<std::size_t>(heads * (most + 1)));
  std::vector<index_t> count(static_cast<std::size_t>(heads)), read;
  scratch_.resize(row_size(r));
  require(cache->attend(context, layer, chunk.q, out_view(r, 1, scratch_.data()), {.runs = {runs.data(), most + 1, count.data()}}),
          "attention");
  const auto& rows = rotated.layers[static_cast<std::size_t>(layer)];
  const float scale = r.shape.softmax_scale > 0 ? r.shape.softmax_scale : 1 / std::sqrt(static_cast<float>(dim));
  for (index_t h = 0; h < heads; ++h) {
    const index_t kv = h / r.shape.group();
    read.clear();
    for (index_t i = 0; i < count[static_cast<std::size_t>(h)]; ++i)
      for (index_t s = runs[static_cast<std::size_t>(h * (most + 1) + i)].first; s < runs[static_cast<std::size_t>(h * (most + 1) + i)].last; ++s)
        read.push_back(cache->token(layer, kv, s));
    const std::span<const float> q(rows.q.data() + (at * heads + h) * dim, static_cast<std::size_t>(dim));
    reads.mass += mass_on(q, rows.k.data() + kv * dim, static_cast<std::size_t>(r.shape.kv_heads * dim), at + 1, scale, read);
    reads.slots += static_cast<double>(read.size()) / static_cast<double>(at + 1);
    ++reads.rows;
  }
}

Outputs Replay::run(const Feeding& feeding, const Tick& tick, ReadSums* reads, const Recording* rotated) {
  const Recording& r = *recording_;
  const index_t prefill = feeding.prefill;
  const double share = 1 / static_cast<double>(r.shape.layers);  // of a token, for one layer
  Outputs outputs(r.layers.size());
  for (index_t layer = 0; layer < r.shape.layers; ++layer) {
    for (index_t at = 0; const index_t end : feeding.ends()) {
      scratch_.resize(row_size(r) * static_cast<std::size_t>(end - at));
      feed(layer, at, end - at, at, feeding.phase(end),
           scratch_.data());
      tick(share * static_cast<double>(end - at));
      at = end;
    }
    auto& out = outputs[static_cast<std::size_t>(layer)];
    out.resize(row_size(r) * static_cast<std::size_t>(r.tokens - prefill));
    for (index_t at = prefill; at < r.tokens; ++at) {
      if (reads != nullptr) count_reads(layer, at, *rotated, *reads);
      feed(layer, at, 1, at, Phase::decode,
           out.data() + row_size(r) * static_cast<std::size_t>(at - prefill));
      tick(share);
    }
  }
  return outputs;
}

void Replay::step(index_t at) {
  scratch_.resize(row_size(*recording_));
  for (index_t layer = 0; layer < recording_->shape.layers; ++layer)
    feed(layer, at % recording_->tokens, 1, at, Phase::decode, scratch_.data());
}

std::vector<ErrorSums> errors(const Outputs& exact, const Outputs& other) {
  std::vector<ErrorSums> sums(exact.size());
  for (std::size_t l = 0; l < exact.size(); ++l) sums[l].add(exact[l], other[l]);
  return sums;
}

}  // namespace eval
