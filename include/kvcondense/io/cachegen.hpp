#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <kvcondense/io/cachegen_reader.hpp>
#include <kvcondense/io/cachegen_writer.hpp>
#include <kvcondense/io/stream_cache.hpp>

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
  StreamPlace all;
  if (const Status s = detail::place_of(cache, all); s != Status::ok) return s;
  index_t first = 0;
  do {
    const index_t n = std::min(method.chunk, all.total - first);
    const StreamPlace place{n, first, all.total, all.position + first, all.raw_keys};
    const Status s = writer->write(sink, place, [&](index_t l, TensorView<float, 3> keys, TensorView<float, 3> values) {
      return detail::read_rows(cache, l, first, keys, values);
    });
    if (s != Status::ok) return s;
    first += n;
  } while (first < all.total);
  return Status::ok;
}

namespace detail {

template <class C, class Ctx>
Status append_chunk(C& cache, Ctx& ctx, const CacheGenReader& chunk, MemoryResource<Cpu>& memory) {
  return append_chunk(cache, ctx, chunk.head(), memory, [&](index_t l, KvSide side, index_t sub, TensorView<float, 3> out) {
    return chunk.decode(l, side, sub, out);
  });
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
  return detail::on_fork(cache, [&](C& longer) { return detail::append_chunk(longer, ctx, chunk, memory); });
}

/// Fills an empty cache with a stream: all its chunks, which must be all of `file`. Tokens are pending then.
///
/// Errors   on any of them the cache is as it was. As CacheGenReader::open and append_cachegen; order_violation where the
///          cache is not empty; corrupt_data where chunks are missing, double or out of order.
template <class C, class Ctx>
Status load_cachegen(C& cache, Ctx& ctx, std::span<const std::byte> file, const CacheGenReader* tables = nullptr,
                     MemoryResource<Cpu>& memory = heap_memory()) {
  return detail::load_stream(
      cache, file, [&](std::span<const std::byte> bytes) { return CacheGenReader::open(bytes, tables); },
      [&](C& full, const CacheGenReader& chunk) { return detail::append_chunk(full, ctx, chunk, memory); });
}

/// Writes a chunk without tokens that has the tables of `from`: what a service profiles once per model and keeps, so that
/// chunks need not carry tables.
///
/// Errors   invalid_argument where `from` has no tables of its own, corrupt_data, out_of_memory, io_error.
inline Status save_cachegen_tables(const CacheGenReader& from, ByteSink& sink, MemoryResource<Cpu>& memory = heap_memory()) {
  CacheGenHead head = from.head();
  if (head.offline) return Status::invalid_argument;
  head.tokens = 0, head.first = head.total = 0, head.position = 0;
  Status s = Status::ok;
  const std::uint64_t sum = head.write(sink, s);
  const std::uint32_t zero = 0;
  PartWriter w(memory);
  for (index_t p = 0; s == Status::ok && p < head.parts(); ++p) {
    CacheGenPart part;
    s = from.read_part(p / 2, p % 2 == 0 ? KvSide::keys : KvSide::values, part);
    if (s != Status::ok) break;
    s = w.begin();
    if (s == Status::ok) s = w.put(static_cast<std::uint32_t>(part.symbols));
    for (const auto bytes : {std::as_bytes(std::span(&zero, 1)), part.tables, part.anchor_table, std::as_bytes(std::span(&zero, 1))})
      if (s == Status::ok) s = w.put_bytes(bytes);
    if (s == Status::ok) s = w.finish(sink, sum, p);
  }
  return s;
}

}  // namespace kvcondense::io
