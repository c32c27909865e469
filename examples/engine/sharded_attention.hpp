#pragma once

#include <algorithm>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include <engine/decoder.hpp>
#include <kvcondense/backend/cpu/merge_partials.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/storage/partial_attention.hpp>

namespace engine {

/// One rank's share of a sequence whose cache is split over machines: its slice of the prompt, condensed by its
/// own recipe, and partial attention that is joined exactly. Every rank runs the whole model on every token;
/// only the cache is distributed. Positions must be absolute: a slice does not know its place in the whole.
///
/// Cache: kvcondense::any::AnyCache or a Cache, of a recipe that needs no more than attention and queries.
template <class Cache>
class ShardedAttention {
 public:
  using Split = kvcondense::storage::PartialAttention;
  /// Gives every rank the messages of all, one behind the other in the order of ranks: an all-gather.
  using Exchange = std::function<Status(std::span<const float> mine, std::span<float> all)>;

  ShardedAttention(Cache cache, const Split& split, index_t rank, Exchange exchange)
      : cache_(std::move(cache)), split_(split), rank_(rank), exchange_(std::move(exchange)) {}

  Cache& cache() { return cache_; }
  std::size_t sent_bytes() const { return sent_; }

  Status operator()(const LayerChunk& chunk, TensorView<float, 3> out) {
    namespace kvc = kvcondense;
    const index_t heads = chunk.q.extent[0], tokens = chunk.q.extent[1], dim = out.extent[2];
    index_t slots = 0;
    for (index_t h = 0; h < chunk.k.extent[0]; ++h) slots = std::max(slots, cache_.slots(chunk.layer, h));
    if (const Status s = scratch_.reserve(cache_.workspace_bytes((slots + tokens + 255) / 256 * 256, tokens)); s != Status::ok) return s;
    kvc::Context<kvc::Cpu> context(scratch_.bytes());
    out_.resize(static_cast<std::size_t>(heads * tokens * dim)), lse_.resize(static_cast<std::size_t>(heads * tokens));

    // The tokens of the chunk that are this rank's: one run, since slices are.
    index_t begin = 0, end = 0;
    for (index_t t = tokens; t-- > 0;)
      if (split_.owner(chunk.positions[static_cast<std::size_t>(t)]) == rank_) begin = t, end = std::max(end, t + 1);
    Status s = Status::ok;
    for (index_t t = 0; s == Status::ok && t < begin; ++t) s = look(context, chunk, t, t + 1, {});
    if (s == Status::ok && end > begin) s = own(context, chunk, begin, end);
    for (index_t t = end; s == Status::ok && t < tokens; ++t) s = look(context, chunk, t, t + 1, {});
    if (s == Status::ok && end > begin) s = step(context, chunk, begin, end);
    return s == Status::ok ? join(context, heads, tokens, dim, out) : s;
  }

 private:
  template <class T>
  static TensorView<T, 3> part(TensorView<T, 3> rows, index_t begin, index_t end) {
    rows.data += begin * rows.stride[1];
    rows.extent[1] = end - begin;
    return rows;
  }

  /// Attention of queries [begin, end) over what this rank holds.
  Status look(kvcondense::Context<kvcondense::Cpu>& context, const LayerChunk& chunk, index_t begin, index_t end,
              kvcondense::RaggedView<float> mass) {
    const index_t heads = chunk.q.extent[0], tokens = chunk.q.extent[1], dim = static_cast<index_t>(out_.size()) / heads / tokens;
    const auto all = kvcondense::dense_view(out_.data(), heads, tokens, dim);
    kvcondense::TensorView<float, 2> lse = kvcondense::dense_view(lse_.data(), heads, tokens);
    lse.data += begin, lse.extent[1] = end - begin;
    return cache_.attend(context, chunk.layer, part(chunk.q, begin, end), part(all, begin, end), {mass, lse});
  }

  Status own(kvcondense::Context<kvcondense::Cpu>& context, const LayerChunk& chunk, index_t begin, index_t end) {
    const auto positions = chunk.positions.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    if (const Status s = cache_.append(context, chunk.layer, part(chunk.k, begin, end), part(chunk.v, begin, end), positions, part(chunk.q, begin, end)); s != Status::ok)
      return s;
    mass_.resize(static_cast<std::size_t>(cache_.total_slots(chunk.layer)));
    return look(context, chunk, begin, end, cache_.ragged(chunk.layer, mass_.data()));
  }

  /// The recipe acts when all have looked. A slice's prompt ends where the slice does.
  Status step(kvcondense::Context<kvcondense::Cpu>& context, const LayerChunk& chunk, index_t begin, index_t end) {
    kvcondense::StepInputs inputs;
    inputs.attention = {cache_.ragged(chunk.layer, mass_.data()), cache_.mass_rows(end - begin)};
    inputs.queries = part(chunk.q, begin, end);
    const index_t last = chunk.positions[static_cast<std::size_t>(end - 1)];
    const Phase phase = last >= split_.tokens ? Phase::decode : last + 1 == split_.end(rank_) ? Phase::prefill_end : Phase::prefill_chunk;
    return cache_.step(context, chunk.layer, inputs, phase);
  }

  Status join(kvcondense::Context<kvcondense::Cpu>& context, index_t heads, index_t tokens, index_t dim, TensorView<float, 3> out) {
    const auto numbers = static_cast<std::size_t>(Split::message_numbers(heads, tokens, dim));
    const auto ranks = static_cast<std::size_t>(split_.shards);
    mine_.resize(numbers), all_.resize(numbers * ranks);
    const kvcondense::prim::PartialAttention partial{kvcondense::dense_view(std::as_const(out_).data(), heads, tokens, dim),
                                                     kvcondense::dense_view(std::as_const(lse_).data(), heads, tokens)};
    if (const Status s = Split::pack(partial, mine_); s != Status::ok) return s;
    if (const Status s = exchange_(mine_, all_); s != Status::ok) return s;
    sent_ += numbers * sizeof(float);
    parts_.clear();
    for (std::size_t r = 0; r < ranks; ++r)
      parts_.push_back(Split::unpack(std::span<const float>(all_).subspan(r * numbers, numbers), heads, tokens, dim));
    return kvcondense::prim::MergePartials<kvcondense::Cpu>::run(context, parts_, out);
  }

  Cache cache_;
  Split split_;
  index_t rank_;
  Exchange exchange_;
  kvcondense::Workspace scratch_;
  std::size_t sent_ = 0;
  std::vector<float> out_, lse_, mass_, mine_, all_;
  std::vector<kvcondense::prim::PartialAttention> parts_;
};

}  // namespace engine
