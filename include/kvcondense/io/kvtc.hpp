#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <kvcondense/core/workspace.hpp>
#include <kvcondense/io/kvtc_reader.hpp>
#include <kvcondense/io/kvtc_writer.hpp>
#include <kvcondense/io/stream_cache.hpp>

namespace kvcondense::io {

/// Writes what a cache holds as chunks of KVTC: the sinks exactly, coded chunks, the window exactly. Cache and AnyCache alike;
/// what is coded is what the cache reads back.
///
///   auto transform = io::KvtcTransform::make(keys, values, cache.shape());  // of `kvcondense-eval calibrate --method kvtc`
///   s = io::save_kvtc(cache, quant::Kvtc::level(2), *transform, sink, &rope);
///
/// Needs    as many slots in every head of every layer, as save_cachegen does. `rope`: the rotation of the cache's keys, where
///          the transform is of keys without.
/// Cost     memory as KvtcWriter says; the cache is read once.
/// Numbers  sinks and window as the cache's type holds them: a cache that stores codes reads back numbers that are rounded to it.
/// Errors   not_supported (heads of unlike length; tokens at positions that repeat), what KvtcWriter says.
template <class C>
Status save_kvtc(const C& cache, const quant::Kvtc& method, const KvtcTransform& transform, ByteSink& sink,
                 const prim::RopeTable* rope = nullptr, MemoryResource<Cpu>& memory = heap_memory()) {
  auto writer = KvtcWriter::make(method, cache.shape(), transform, rope, memory);
  if (!writer) return writer.status();
  return detail::save_chunks(cache, *writer, method.sinks, method.window, method.chunk, sink);
}

namespace detail {

template <class C, class Ctx>
Status append_chunk(C& cache, Ctx& ctx, const KvtcReader& chunk, MemoryResource<Cpu>& memory) {
  const KvtcHead& h = chunk.head();
  if (!h.fits(cache.shape())) return Status::incompatible;
  const auto keys = chunk.component_count(KvSide::keys), values = chunk.component_count(KvSide::values);
  if (!keys || !values) return keys ? values.status() : keys.status();
  const index_t most = std::min<index_t>(h.sub_chunk, h.tokens);
  Workspace work;
  Status s = work.reserve(Scratch::align + Scratch::bytes_for<float>(most * *keys) + Scratch::bytes_for<float>(most * *values), memory);
  if (s != Status::ok) return s;
  Scratch scratch(work.bytes());
  struct {
    index_t sub = -1, count = 0;
    float* z = nullptr;
  } decoded[2];
  decoded[0].count = *keys, decoded[1].count = *values;
  for (auto& d : decoded) d.z = scratch.take<float>(most * d.count);
  return append_chunk(cache, ctx, h, memory, [&](index_t l, KvSide side, index_t sub, TensorView<float, 3> out) {
    auto& d = decoded[static_cast<std::size_t>(side)];
    const TensorView<float, 2> z{d.z, {h.tokens_of(sub), d.count}, {d.count, 1}};
    if (d.sub != sub)
      if (const Status bad = chunk.components(side, sub, z); bad != Status::ok) return bad;
    d.sub = sub;
    return chunk.expand(l, side, sub, z, out);
  });
}

}  // namespace detail

/// Appends a chunk to a cache that holds the tokens before it, all layers. The tokens are pending then: a step per layer
/// follows, when the caller likes.
///
/// Needs    Context<Cpu> as append does.
/// Cost     memory for a sub-chunk of a layer in float and a sub-chunk's components; works on a fork of the cache, which takes
///          the cache's place.
/// Numbers  numbers beyond the largest of the cache's type become that one.
/// Errors   on any of them the cache is as it was. incompatible (another shape; keys with rotation where the cache has
///          none, or the other way round), not_supported (a cache that takes rotated keys and stores them without),
///          order_violation (a cache that has not seen exactly head().first tokens), corrupt_data, out_of_memory.
template <class C, class Ctx>
Status append_kvtc(C& cache, Ctx& ctx, const KvtcReader& chunk, MemoryResource<Cpu>& memory = heap_memory()) {
  if (const Status s = chunk.check(); s != Status::ok) return s;
  return detail::on_fork(cache, [&](C& longer) { return detail::append_chunk(longer, ctx, chunk, memory); });
}

/// Fills an empty cache with a stream: all its chunks, which must be all of `file`. Tokens are pending then.
///
/// Errors   on any of them the cache is as it was. As KvtcReader::open and append_kvtc; order_violation where the cache is not
///          empty; corrupt_data where chunks are missing, double or out of order.
template <class C, class Ctx>
Status load_kvtc(C& cache, Ctx& ctx, std::span<const std::byte> file, const KvtcTransform& transform,
                 const prim::RopeTable* rope = nullptr, MemoryResource<Cpu>& memory = heap_memory()) {
  return detail::load_stream(
      cache, file, [&](std::span<const std::byte> bytes) { return KvtcReader::open(bytes, transform, rope); },
      [&](C& full, const KvtcReader& chunk) { return detail::append_chunk(full, ctx, chunk, memory); });
}

}  // namespace kvcondense::io
