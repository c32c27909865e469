#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/io/stream_chunk.hpp>
#include <kvcondense/prim/group_quant.hpp>

// Caches and streams of any format: what a cache has to be, to be written as chunks and to be filled by them.

namespace kvcondense::io::detail {

/// The place of a whole cache in a stream. not_supported: heads of unlike length, or positions that repeat.
template <class C>
Status place_of(const C& cache, StreamPlace& all) {
  const CacheShape& shape = cache.shape();
  const index_t total = cache.slots(0, 0), position = cache.next_position(0) - total;
  for (index_t l = 0; l < shape.layers; ++l) {
    if (cache.next_position(l) - total != position || position < 0) return Status::not_supported;
    for (index_t h = 0; h < shape.kv_heads; ++h)
      if (cache.slots(l, h) != total) return Status::not_supported;
  }
  all = {total, 0, total, position, cache.capabilities().raw_keys};
  return Status::ok;
}

/// Slots from `first` on of all heads of a layer.
template <class C>
Status read_rows(const C& cache, index_t layer, index_t first, TensorView<float, 3> keys, TensorView<float, 3> values) {
  const auto head = [](const TensorView<float, 3>& x, index_t h) {
    return TensorView<float, 2>{x.data + h * x.stride[0], {x.extent[1], x.extent[2]}, {x.stride[1], x.stride[2]}};
  };
  Status s = Status::ok;
  for (index_t h = 0; s == Status::ok && h < cache.shape().kv_heads; ++h) s = cache.read(layer, h, first, head(keys, h), head(values, h));
  return s;
}

/// Writes what a cache holds: `sinks` tokens exactly, chunks of at most `chunk` coded tokens, the last `window` tokens exactly.
template <class C, class Writer>
Status save_chunks(const C& cache, Writer& writer, index_t sink_tokens, index_t window, index_t chunk, ByteSink& sink) {
  StreamPlace all;
  if (const Status s = place_of(cache, all); s != Status::ok) return s;
  const index_t sinks = std::min(sink_tokens, all.total), coded_end = std::max(sinks, all.total - window);
  index_t first = 0;
  do {
    const bool exact = first < sinks || first >= coded_end;
    const index_t end = first < sinks ? sinks : exact ? all.total : std::min(first + chunk, coded_end);
    const StreamPlace place{end - first, first, all.total, all.position + first, all.raw_keys};
    const Status s = writer.write(sink, place, exact, [&](index_t l, index_t from, TensorView<float, 3> keys, TensorView<float, 3> values) {
      return read_rows(cache, l, first + from, keys, values);
    });
    if (s != Status::ok) return s;
    first = end;
  } while (first < all.total);
  return Status::ok;
}

/// Appends a chunk that was checked to a cache that takes it, sub-chunk by sub-chunk of all layers; what was appended stays
/// where the rest cannot be. decode(layer, side, sub, out) fills out [kv_heads, tokens of the sub-chunk, dim].
template <class C, class Ctx, class Decode>
Status append_chunk(C& cache, Ctx& ctx, const StreamHead& h, MemoryResource<Cpu>& memory, Decode&& decode) {
  const CacheShape& shape = cache.shape();
  const auto can = cache.capabilities();
  if (!h.fits(shape) || can.raw_keys != h.raw_keys) return Status::incompatible;
  if (can.raw_keys && can.rotated_input) return Status::not_supported;
  for (index_t l = 0; l < shape.layers; ++l)
    if (cache.length(l) != static_cast<index_t>(h.first)) return Status::order_violation;

  const index_t most = std::min<index_t>(h.sub_chunk, h.tokens);
  const index_t key_floats = most * h.channels(KvSide::keys), value_floats = most * h.channels(KvSide::values);
  Workspace work;
  Status s = work.reserve(Scratch::align + Scratch::bytes_for<float>(key_floats) + Scratch::bytes_for<float>(value_floats) +
                              Scratch::bytes_for<index_t>(most), memory);
  if (s != Status::ok) return s;
  Scratch scratch(work.bytes());
  float* k = scratch.take<float>(key_floats);
  float* v = scratch.take<float>(value_floats);
  index_t* positions = scratch.take<index_t>(most);
  const float largest = largest_kept(shape.dtype);
  for (index_t sub = 0; sub < h.sub_chunks(); ++sub)
    for (index_t l = 0; l < shape.layers; ++l) {
      const index_t n = h.tokens_of(sub);
      const auto keys = dense_view(k, shape.kv_heads, n, shape.head_dim), values = dense_view(v, shape.kv_heads, n, shape.values());
      s = decode(l, KvSide::keys, sub, keys);
      if (s == Status::ok) s = decode(l, KvSide::values, sub, values);
      if (s != Status::ok) return s;
      for (index_t i = 0; i < keys.size(); ++i) k[i] = prim::limit_to(k[i], largest);
      for (index_t i = 0; i < values.size(); ++i) v[i] = prim::limit_to(v[i], largest);
      for (index_t i = 0; i < n; ++i) positions[i] = h.position + sub * h.sub_chunk + i;
      s = cache.append(ctx, l, keys, values, {positions, static_cast<std::size_t>(n)});
      if (s != Status::ok) return s;
    }
  return Status::ok;
}

/// append(fork): works on a fork, which takes the cache's place where it went well.
template <class C, class Append>
Status on_fork(C& cache, Append&& append) {
  auto longer = cache.fork();
  if (!longer) return longer.status();
  const Status s = append(*longer);
  if (s == Status::ok) cache = std::move(*longer);
  return s;
}

/// Fills an empty cache with all chunks of a stream. open(bytes) opens a chunk, append(cache, chunk) appends one that was
/// checked.
template <class C, class Open, class Append>
Status load_stream(C& cache, std::span<const std::byte> file, Open&& open, Append&& append) {
  for (index_t l = 0; l < cache.shape().layers; ++l)
    if (cache.length(l) != 0) return Status::order_violation;
  return on_fork(cache, [&](C& full) {
    std::uint64_t seen = 0, total = 0;
    auto left = file;
    do {
      const auto chunk = open(left);
      if (!chunk) return chunk.status();
      if (left.size() == file.size()) total = chunk->head().total;
      if (chunk->head().first != seen || chunk->head().total != total) return Status::corrupt_data;
      if (const Status s = chunk->check(); s != Status::ok) return s;
      if (const Status s = append(full, *chunk); s != Status::ok) return s;
      seen += chunk->head().tokens;
      left = left.subspan(chunk->bytes());
    } while (!left.empty());
    return seen == total ? Status::ok : Status::corrupt_data;
  });
}

}  // namespace kvcondense::io::detail
