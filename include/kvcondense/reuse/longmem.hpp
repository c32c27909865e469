#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/backend_memory.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/chunk_memory.hpp>
#include <kvcondense/prim/rope.hpp>

namespace kvcondense::reuse {

/// Remembers keys and values of long ago in chunks, and mixes attention to the best of them into local attention.
///
/// Idea     what left the context stays in a memory beside one layer; each query reads a few chunks of it, found by
///          their mean keys, and a learned gate per head says how much they count beside what is local.
/// Source   LongMem, arXiv:2306.07174. Its side network and gates are trained: gates are the engine's.
/// Needs    keys and values as attention compares them with queries; local attention; a gate bias per query head.
/// Shapes   keys [kv_heads, tokens, head_dim], values, queries and output as in `prim::RetrieveChunks`, last dimension contiguous; on CUDA
///          all of them, biases too, in device memory. One object per layer and sequence, whose calls on CUDA go to one stream.
/// Cost     memory: capacity tokens of float32 keys and values and a mean key per chunk; a retrieval reads all means and
///          `tokens` tokens per query and head. `add` moves runs of whole chunks at once; once the memory is full a run is of about `drop` chunks.
/// Numbers  out = (1 - g) local + g memory, g = 1 / (1 + exp(-bias)): two softmaxes that know nothing of each other. An
///          empty memory leaves local attention alone. When it is full the oldest chunks go, `drop` at once.
///          Tokens that do not fill a chunk wait until it is full.
/// Errors   invalid_argument, shape_mismatch, workspace_too_small, out_of_memory. The memory is then as it was.
template <Backend B>
class LongMem {
 public:
  static constexpr Descriptor about{"longmem", Stage::reuse, "arXiv:2306.07174"};

  /// Sizes of a memory.
  struct Options {
    index_t chunk = 4;
    index_t tokens = 64;       ///< that a query reads; whole chunks
    index_t capacity = 65536;  ///< tokens that are remembered
    index_t drop = 1;          ///< chunks that go together when it is full

    Status validate() const {
      const bool sizes = chunk >= 1 && tokens >= chunk && capacity >= chunk && drop >= 1 && drop <= capacity / chunk;
      return sizes && tokens % chunk == 0 && capacity % chunk == 0 && capacity <= (index_t{1} << 30) ? Status::ok : Status::invalid_argument;
    }
  };

  static Expected<LongMem> make(const CacheShape& shape, const Options& options, MemoryResource<B>& memory = BackendMemory<B>::resource()) {
    if (const Status s = kvcondense::validate(shape); s != Status::ok) return s;
    if (const Status s = options.validate(); s != Status::ok) return s;
    LongMem m(memory);
    m.shape_ = shape, m.options_ = options;
    const index_t dim = shape.head_dim, width = shape.values(), kv = shape.kv_heads;
    const std::pair<Array*, index_t> rooms[] = {{&m.keys_, kv * options.capacity * dim},
                                                        {&m.values_, kv * options.capacity * width},
                                                        {&m.means_, kv * m.places() * dim},
                                                        {&m.waiting_, kv * options.chunk * (dim + width)}};
    for (const auto& [room, numbers] : rooms)
      if (const Status s = room->resize(numbers); s != Status::ok) return s;
    return m;
  }

  index_t chunks() const { return chunks_; }
  index_t tokens() const { return chunks_ * options_.chunk; }  ///< that can be found
  index_t waiting() const { return pending_; }
  index_t dropped() const { return dropped_; }  ///< chunks so far

  /// Remembers tokens: keys [kv_heads, tokens, head_dim], values [kv_heads, tokens, value_dim].
  Status add(Context<B>& ctx, TensorView<const float, 3> keys, TensorView<const float, 3> values) {
    const index_t dim = shape_.head_dim, width = shape_.values(), kv = shape_.kv_heads, n = keys.extent[1];
    if (keys.extent[0] != kv || values.extent[0] != kv || keys.extent[2] != dim || values.extent[2] != width || values.extent[1] != n)
      return Status::shape_mismatch;
    if ((dim > 1 && keys.stride[2] != 1) || (width > 1 && values.stride[2] != 1)) return Status::shape_mismatch;
    const index_t chunk = options_.chunk;
    for (index_t t = 0, taken = 0; t < n; t += taken) {
      Status s = Status::ok;
      if (pending_ == 0 && n - t >= chunk) {
        taken = fitting((n - t) / chunk) * chunk;
        s = store(ctx, part(keys, t, taken), part(values, t, taken));
      } else {  // a chunk that is not full, or becomes so
        taken = std::min(n - t, chunk - pending_);
        s = copy(ctx, part(keys, t, taken), part(waiting_keys(), pending_, taken));
        if (s == Status::ok) s = copy(ctx, part(values, t, taken), part(waiting_values(), pending_, taken));
        if (s == Status::ok && (pending_ += taken) == chunk) pending_ = 0, s = store(ctx, waiting_keys(), waiting_values());
      }
      if (s != Status::ok) return s;
    }
    return Status::ok;
  }

  void clear() { first_ = chunks_ = pending_ = 0; }

  prim::ChunkMemory memory() const {
    const index_t kv = shape_.kv_heads;
    return {dense_view(keys_.data(), kv, options_.capacity, shape_.head_dim), dense_view(values_.data(), kv, options_.capacity, shape_.values()),
            dense_view(means_.data(), kv, places(), shape_.head_dim), options_.chunk, first_, chunks_};
  }

  index_t most_chunks() const { return options_.tokens / options_.chunk; }
  std::size_t workspace_bytes(index_t tokens, index_t workers = 1) const {
    using Words = prim::RetrieveChunks<B>;
    std::size_t words = 0;
    if constexpr (std::same_as<B, Cpu>) words = Words::workspace_bytes(workers, most_chunks(), options_.chunk, shape_.head_dim);
    else words = Words::workspace_bytes(shape_.q_heads * tokens, places(), most_chunks(), options_.chunk);
    return Scratch::bytes_for<float>(shape_.q_heads * tokens * shape_.values()) + words;
  }

  /// Mixes the memory into local attention: `local` and out [q_heads, tokens, value_dim], may be the same. A gate's
  /// bias per query head. An empty memory has nothing to say, whatever the gate.
  Status mix(Context<B>& ctx, TensorView<const float, 3> queries, TensorView<const float, 3> local, std::span<const float> bias,
             TensorView<float, 3> out, TensorView<std::int32_t, 3> chosen = {}) const {
    const index_t heads = shape_.q_heads, n = queries.extent[1], width = shape_.values();
    if (queries.extent[0] != heads || queries.extent[2] != shape_.head_dim || static_cast<index_t>(bias.size()) != heads) return Status::shape_mismatch;
    Scratch scratch(ctx.workspace());
    float* remembered = scratch.take<float>(heads * n * width);
    if (remembered == nullptr) return Status::workspace_too_small;
    const auto from = dense_view(remembered, heads, n, width);
    const float scale = shape_.softmax_scale > 0.0f ? shape_.softmax_scale : 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
    if (const Status s = prim::RetrieveChunks<B>::run(ctx, memory(), queries, most_chunks(), scale, from, {}, chosen, scratch); s != Status::ok)
      return s;
    return chunks_ == 0 ? copy(ctx, local, out) : prim::GatedMerge<B>::run(ctx, local, from, bias, out);
  }

 private:
  using Array = typename BackendMemory<B>::template Array<float>;

  explicit LongMem(MemoryResource<B>& memory) : keys_(memory), values_(memory), means_(memory), waiting_(memory) {}

  index_t places() const { return options_.capacity / options_.chunk; }
  TensorView<float, 3> waiting_keys() { return dense_view(waiting_.data(), shape_.kv_heads, options_.chunk, shape_.head_dim); }
  TensorView<float, 3> waiting_values() {
    return dense_view(waiting_.data() + shape_.kv_heads * options_.chunk * shape_.head_dim, shape_.kv_heads, options_.chunk, shape_.values());
  }
  template <class T>
  static TensorView<T, 3> part(TensorView<T, 3> rows, index_t first, index_t count) {
    rows.data += first * rows.stride[1];
    rows.extent[1] = count;
    return rows;
  }
  static Status copy(Context<B>& ctx, TensorView<const float, 3> rows, TensorView<float, 3> out) {
    return prim::Rope<B>::shift(ctx, {}, rows, 0, out);
  }

  /// How many of `chunks` find room in one run: to the end of the ring, and without dropping one of themselves.
  index_t fitting(index_t chunks) const {
    const index_t dropped = chunks_ / options_.drop * options_.drop;
    return std::min({chunks, places() - (first_ + chunks_) % places(), places() - chunks_ + dropped});
  }
  /// Whole chunks, as many as fit: drops come one after the other as chunks meet a full memory.
  Status store(Context<B>& ctx, TensorView<const float, 3> keys, TensorView<const float, 3> values) {
    const index_t count = keys.extent[1] / options_.chunk, over = std::max<index_t>(0, chunks_ + count - places());
    const index_t gone = (over + options_.drop - 1) / options_.drop * options_.drop;
    first_ = (first_ + gone) % places();
    chunks_ -= gone;
    dropped_ += gone;
    const index_t at = (first_ + chunks_) % places(), dim = shape_.head_dim, width = shape_.values(), kv = shape_.kv_heads, chunk = options_.chunk;
    chunks_ += count;
    Status s = copy(ctx, keys, part(dense_view(keys_.data(), kv, options_.capacity, dim), at * chunk, count * chunk));
    if (s == Status::ok) s = copy(ctx, values, part(dense_view(values_.data(), kv, options_.capacity, width), at * chunk, count * chunk));
    return s == Status::ok ? prim::RetrieveChunks<B>::means(ctx, keys, chunk, part(dense_view(means_.data(), kv, places(), dim), at, count)) : s;
  }

  CacheShape shape_{};
  Options options_{};
  Array keys_, values_, means_;
  Array waiting_;  ///< keys, then values, of the chunk that is not full
  index_t first_ = 0, chunks_ = 0, pending_ = 0, dropped_ = 0;
};

}  // namespace kvcondense::reuse
