#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include <kvcondense/core/workspace.hpp>
#include <kvcondense/io/cachegen_reader.hpp>
#include <kvcondense/io/cachegen_writer.hpp>

namespace kvcondense::io {

/// Writes what a cache holds as chunks of CacheGen, one behind the other. Cache and AnyCache alike; what is coded is what
/// the cache reads back: exact numbers, or those its own codes stand for.
///
///   io::FileSink file("context.kvcg");
///   s = io::save_cachegen(cache, quant::CacheGen::level(2), file);
///
/// Needs    as many slots in every head of every layer: a cache that evicts by head has another number in each, and
///          no tokens that a chunk could hold.
/// Cost     memory for one layer of a chunk; the cache is read once.
/// Numbers  which tokens the slots hold, and what the policy remembers of them, is not written: save does that.
/// Errors   not_supported (heads of unlike length; tokens at positions that repeat), what CacheGenWriter says.
template <class C>
Status save_cachegen(const C& cache, const quant::CacheGen& method, ByteSink& sink, const CacheGenReader* tables = nullptr,
                     MemoryResource<Cpu>& memory = heap_memory()) {
  const CacheShape& shape = cache.shape();
  auto writer = CacheGenWriter::make(method, shape, tables, memory);
  if (!writer) return writer.status();
  const index_t total = cache.slots(0, 0), position = cache.next_position(0) - total;
  for (index_t l = 0; l < shape.layers; ++l) {
    if (cache.next_position(l) - total != position || position < 0) return Status::not_supported;
    for (index_t h = 0; h < shape.kv_heads; ++h)
      if (cache.slots(l, h) != total) return Status::not_supported;
  }
  index_t first = 0;
  do {
    const index_t n = std::min(method.chunk, total - first);
    const CacheGenWriter::Place place{n, first, total, position + first, cache.capabilities().raw_keys};
    const Status s = writer->write(sink, place, [&](index_t l, TensorView<float, 3> keys, TensorView<float, 3> values) {
      const auto head = [](const TensorView<float, 3>& x, index_t h) {
        return TensorView<float, 2>{x.data + h * x.stride[0], {x.extent[1], x.extent[2]}, {x.stride[1], x.stride[2]}};
      };
      Status read = Status::ok;
      for (index_t h = 0; read == Status::ok && h < shape.kv_heads; ++h) read = cache.read(l, h, first, head(keys, h), head(values, h));
      return read;
    });
    if (s != Status::ok) return s;
    first += n;
  } while (first < total);
  return Status::ok;
}

namespace detail {

/// Appends a chunk that was checked to a cache that takes it; what was appended stays where the rest cannot be.
template <class C, class Ctx>
Status append_chunk(C& cache, Ctx& ctx, const CacheGenReader& chunk, MemoryResource<Cpu>& memory) {
  const CacheShape& shape = cache.shape();
  const CacheGenHead& h = chunk.head();
  const auto can = cache.capabilities();
  if (shape.layers != h.layers || shape.kv_heads != h.kv_heads || shape.head_dim != h.head_dim || shape.values() != h.value_dim ||
      can.raw_keys != h.raw_keys)
    return Status::incompatible;
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
  const float largest = shape.dtype == DType::f16 ? 65504.0f : 3.38e38f;
  for (index_t l = 0; l < shape.layers; ++l)
    for (index_t sub = 0; sub < h.sub_chunks(); ++sub) {
      const index_t n = h.tokens_of(sub);
      const auto keys = dense_view(k, shape.kv_heads, n, shape.head_dim), values = dense_view(v, shape.kv_heads, n, shape.values());
      s = chunk.decode(l, KvSide::keys, sub, keys);
      if (s == Status::ok) s = chunk.decode(l, KvSide::values, sub, values);
      if (s != Status::ok) return s;
      for (index_t i = 0; i < keys.size(); ++i) k[i] = prim::limit_to(k[i], largest);
      for (index_t i = 0; i < values.size(); ++i) v[i] = prim::limit_to(v[i], largest);
      for (index_t i = 0; i < n; ++i) positions[i] = h.position + sub * h.sub_chunk + i;
      s = cache.append(ctx, l, keys, values, {positions, static_cast<std::size_t>(n)});
      if (s != Status::ok) return s;
    }
  return Status::ok;
}

}  // namespace detail

/// Appends a chunk to a cache that holds the tokens before it, all layers. The tokens are pending then: a step per layer
/// follows, when the caller likes.
///
/// Needs    Context<Cpu> as append does.
/// Cost     memory for a sub-chunk of a layer in float; works on a fork of the cache, which takes the cache's place.
/// Numbers  numbers beyond the largest of the cache's type, which half a step may lead to, become that one.
/// Errors   on any of them the cache is as it was. incompatible (another shape; keys with rotation where the cache has
///          none, or the other way round), not_supported (a cache that takes rotated keys and stores them without),
///          order_violation (a cache that has not seen exactly head().first tokens), corrupt_data, out_of_memory.
template <class C, class Ctx>
Status append_cachegen(C& cache, Ctx& ctx, const CacheGenReader& chunk, MemoryResource<Cpu>& memory = heap_memory()) {
  if (const Status s = chunk.check(); s != Status::ok) return s;
  auto longer = cache.fork();
  if (!longer) return longer.status();
  const Status s = detail::append_chunk(*longer, ctx, chunk, memory);
  if (s == Status::ok) cache = std::move(*longer);
  return s;
}

/// Fills an empty cache with a stream: all its chunks, which must be all of `file`. Tokens are pending then.
///
/// Errors   on any of them the cache is as it was. As CacheGenReader::open and append_cachegen; order_violation where the
///          cache is not empty; corrupt_data where chunks are missing, double or out of order.
template <class C, class Ctx>
Status load_cachegen(C& cache, Ctx& ctx, std::span<const std::byte> file, const CacheGenReader* tables = nullptr,
                     MemoryResource<Cpu>& memory = heap_memory()) {
  for (index_t l = 0; l < cache.shape().layers; ++l)
    if (cache.length(l) != 0) return Status::order_violation;
  auto full = cache.fork();
  if (!full) return full.status();
  std::uint64_t seen = 0, total = 0;
  auto left = file;
  do {
    const auto chunk = CacheGenReader::open(left, tables);
    if (!chunk) return chunk.status();
    if (left.size() == file.size()) total = chunk->head().total;
    if (chunk->head().first != seen || chunk->head().total != total) return Status::corrupt_data;
    if (const Status s = chunk->check(); s != Status::ok) return s;
    if (const Status s = detail::append_chunk(*full, ctx, *chunk, memory); s != Status::ok) return s;
    seen += chunk->head().tokens;
    left = left.subspan(chunk->bytes());
  } while (!left.empty());
  if (seen != total) return Status::corrupt_data;
  cache = std::move(*full);
  return Status::ok;
}

/// Writes a chunk without tokens that has the tables of `from`: what a service profiles once per model and keeps, so that
/// chunks need not carry tables.
///
/// Errors   invalid_argument where `from` has no tables of its own, corrupt_data, io_error.
inline Status save_cachegen_tables(const CacheGenReader& from, ByteSink& sink) {
  CacheGenHead head = from.head();
  if (head.offline) return Status::invalid_argument;
  head.tokens = 0, head.first = head.total = 0, head.position = 0;
  Status s = Status::ok;
  const std::uint64_t sum = head.write(sink, s);
  for (index_t p = 0; s == Status::ok && p < head.parts(); ++p) {
    CacheGenPart part;
    s = from.read_part(p / 2, p % 2 == 0 ? KvSide::keys : KvSide::values, part);
    if (s != Status::ok) break;
    ByteWriter w(sink);
    const std::uint32_t symbols[2] = {static_cast<std::uint32_t>(part.symbols), 0}, no_stream = 0;
    const std::span<const std::byte> pieces[] = {std::as_bytes(std::span(symbols)), part.tables, part.anchor_table,
                                                 std::as_bytes(std::span(&no_stream, 1))};
    std::uint64_t length = 16;
    for (const auto& b : pieces) length += b.size();
    w.put(length);
    Checksum check = CacheGenReader::part_sum(sum, p);
    for (const auto& b : pieces) w.bytes(b), check.add(b);
    w.put(check.value());
    s = w.status();
  }
  return s;
}

}  // namespace kvcondense::io
