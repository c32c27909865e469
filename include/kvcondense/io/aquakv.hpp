#pragma once

#include <span>

#include <kvcondense/core/workspace.hpp>
#include <kvcondense/io/aquakv_reader.hpp>
#include <kvcondense/io/aquakv_writer.hpp>
#include <kvcondense/io/stream_cache.hpp>

namespace kvcondense::io {

/// Writes what a cache holds as chunks of AQUA-KV: the sinks exactly, coded chunks, the window exactly. Cache and AnyCache alike;
/// what is coded is what the cache reads back.
///
///   auto maps = io::AquakvMaps::make(arrays, cache.shape());  // of `kvcondense-eval calibrate --method aquakv`
///   s = io::save_aquakv(cache, quant::Aquakv{}, *maps, sink, &rope);
///
/// Needs    as many slots in every head of every layer, as save_cachegen does. `rope`: the rotation of the cache's keys, where
///          the maps are of keys without.
/// Cost     memory as AquakvWriter says; the cache is read once.
/// Numbers  sinks and window as the cache's type holds them: a cache that stores codes reads back numbers that are rounded to it.
/// Errors   not_supported (heads of unlike length; tokens at positions that repeat), what AquakvWriter says.
template <class C>
Status save_aquakv(const C& cache, const quant::Aquakv& method, const AquakvMaps& maps, ByteSink& sink,
                   const prim::RopeTable* rope = nullptr, MemoryResource<Cpu>& memory = heap_memory()) {
  auto writer = AquakvWriter::make(method, cache.shape(), maps, rope, memory);
  if (!writer) return writer.status();
  return detail::save_chunks(cache, *writer, method.sinks, method.window, method.chunk, sink);
}

namespace detail {

template <class C, class Ctx>
Status append_chunk(C& cache, Ctx& ctx, const AquakvReader& chunk, MemoryResource<Cpu>& memory) {
  const AquakvHead& h = chunk.head();
  if (!h.fits(cache.shape())) return Status::incompatible;
  const index_t keys = chunk.row_numbers(KvSide::keys), values = chunk.row_numbers(KvSide::values);
  Workspace work;
  const Status s = work.reserve(Scratch::align + Scratch::bytes_for<float>(keys) + Scratch::bytes_for<float>(values) + chunk.advance_bytes(), memory);
  if (s != Status::ok) return s;
  Scratch scratch(work.bytes());
  float* key_rows = scratch.take<float>(keys);
  float* value_rows = scratch.take<float>(values);
  // Layers come in order, keys before values.
  return append_chunk(cache, ctx, h, memory, [&](index_t l, KvSide side, index_t sub, TensorView<float, 3> out) {
    const AquakvRows rows = chunk.rows(sub, key_rows, value_rows);
    if (side == KvSide::keys)
      if (const Status bad = chunk.advance(l, sub, rows, scratch); bad != Status::ok) return bad;
    return chunk.expand(l, side, sub, rows, out);
  });
}

}  // namespace detail

/// Appends a chunk to a cache that holds the tokens before it, all layers. The tokens are pending then: a step per layer
/// follows, when the caller likes.
///
/// Needs    Context<Cpu> as append does.
/// Cost     memory for a sub-chunk of two layers in float; works on a fork of the cache, which takes the cache's place.
/// Numbers  numbers beyond the largest of the cache's type become that one.
/// Errors   on any of them the cache is as it was. incompatible (another shape; keys with rotation where the cache has
///          none, or the other way round), not_supported (a cache that takes rotated keys and stores them without),
///          order_violation (a cache that has not seen exactly head().first tokens), corrupt_data, out_of_memory.
template <class C, class Ctx>
Status append_aquakv(C& cache, Ctx& ctx, const AquakvReader& chunk, MemoryResource<Cpu>& memory = heap_memory()) {
  if (const Status s = chunk.check(); s != Status::ok) return s;
  return detail::on_fork(cache, [&](C& longer) { return detail::append_chunk(longer, ctx, chunk, memory); });
}

/// Fills an empty cache with a stream: all its chunks, which must be all of `file`. Tokens are pending then.
///
/// Errors   on any of them the cache is as it was. As AquakvReader::open and append_aquakv; order_violation where the cache is not
///          empty; corrupt_data where chunks are missing, double or out of order.
template <class C, class Ctx>
Status load_aquakv(C& cache, Ctx& ctx, std::span<const std::byte> file, const AquakvMaps& maps, const prim::RopeTable* rope = nullptr,
                   MemoryResource<Cpu>& memory = heap_memory()) {
  return detail::load_stream(
      cache, file, [&](std::span<const std::byte> bytes) { return AquakvReader::open(bytes, maps, rope); },
      [&](C& full, const AquakvReader& chunk) { return detail::append_chunk(full, ctx, chunk, memory); });
}

}  // namespace kvcondense::io
