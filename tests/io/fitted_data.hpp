#pragma once

// What tests of stream formats with calibrated arrays, KVTC and AQUA-KV, have in common.

#include <io/cachegen_data.hpp>
#include <kvcondense/io/stream_chunk.hpp>
#include <kvcondense/prim/rope.hpp>
#include <support/memory.hpp>

namespace kvcondense::test {

template <class Writer>
Status write_rows(const Rows4& x, Writer& writer, ByteSink& sink, bool exact = false, io::StreamPlace place = {}) {
  place.tokens = x.tokens, place.total = std::max(place.total, place.first + x.tokens);
  return writer.write(sink, place, exact, [&](index_t layer, index_t first, auto k, auto v) {
    for (const io::KvSide side : {io::KvSide::keys, io::KvSide::values}) {
      auto& to = side == io::KvSide::keys ? k : v;
      const auto from = x.rows(side, layer, first, to.extent[1]);
      for (index_t h = 0; h < to.extent[0]; ++h)
        for (index_t t = 0; t < to.extent[1]; ++t)
          for (index_t d = 0; d < to.extent[2]; ++d) to(h, t, d) = from(h, t, d);
    }
    return Status::ok;
  });
}

template <class Writer, class Method, class Arrays>
Bytes chunk_of(const Rows4& x, const Method& method, const Arrays& arrays, const prim::RopeTable* rope = nullptr, bool exact = false,
               const io::StreamPlace& place = {}) {
  auto writer = Writer::make(method, x.shape, arrays, rope);
  REQUIRE(writer.status() == Status::ok);
  ByteList sink;
  REQUIRE(write_rows(x, *writer, sink, exact, place) == Status::ok);
  return sink.bytes;
}

/// Rows with raw keys, the same with keys that a rope turned at positions from 100 on, and what streams say of either.
struct TurnedRows {
  prim::RopeConfig config;
  prim::RopeTable rope;
  Rows4 raw, rotated;
  io::StreamPlace place{.position = 100}, of_raw{.position = 100, .raw_keys = true};

  TurnedRows(const Rows4& x, prim::RopePairing pairing)
      : config{.pairing = pairing, .rotary_dim = 6}, rope(table(config, x.shape.head_dim)), raw(x), rotated(x) {
    for (index_t row = 0; row < x.shape.layers * x.shape.kv_heads; ++row)
      for (index_t i = 0; i < x.tokens; ++i) rope.rotate(rotated.keys.data() + (row * x.tokens + i) * x.shape.head_dim, 100 + i);
  }
  static prim::RopeTable table(const prim::RopeConfig& config, index_t dim) {
    auto made = prim::RopeTable::make(config, dim, heap_memory());
    REQUIRE(made);
    return std::move(*made);
  }
};

/// A chunk of rotated keys by arrays of raw ones needs the rope that turned them, to be written and read; arrays `of_rotated` keys do not code raw ones.
template <class Writer, class Reader, class Method, class Arrays>
void require_rope_told(const TurnedRows& x, const Bytes& turned, const Method& method, const Arrays& arrays, const Arrays& of_rotated) {
  REQUIRE(Reader::open(turned, arrays).status() == Status::missing_input);
  prim::RopeConfig other = x.config;
  other.base = 500000.0;
  const auto wrong = TurnedRows::table(other, x.raw.shape.head_dim), wide = TurnedRows::table({}, 2 * x.raw.shape.head_dim);
  REQUIRE(Reader::open(turned, arrays, &wrong).status() == Status::incompatible);
  auto without = Writer::make(method, x.raw.shape, arrays);
  ByteList sink;
  REQUIRE(write_rows(x.rotated, *without, sink) == Status::missing_input);
  auto with_wide = Writer::make(method, x.raw.shape, arrays, &wide);
  REQUIRE(write_rows(x.rotated, *with_wide, sink) == Status::incompatible);
  auto rotated_only = Writer::make(method, x.raw.shape, of_rotated);
  REQUIRE(write_rows(x.raw, *rotated_only, sink, false, x.of_raw) == Status::incompatible);
  REQUIRE(sink.bytes.empty());
}

/// A chunk of these rows, among which are NaN and infinities: they are repaired and counted.
template <class Writer, class Method, class Arrays>
Bytes repaired_chunk(Rows4 x, const Method& method, const Arrays& arrays, bool exact) {
  x.keys[0] = std::nanf(""), x.keys[100] = INFINITY, x.values[7] = -INFINITY;
  auto writer = Writer::make(method, x.shape, arrays);
  ByteList sink;
  REQUIRE(write_rows(x, *writer, sink, exact) == Status::ok);
  REQUIRE(writer->repaired() == 3);
  return sink.bytes;
}
/// What comes out of it: of exact tokens 0 for NaN and the largest half for infinity, of others about the `mean` of the channel for NaN.
inline void require_repaired(const Decoded& d, bool exact, float mean) {
  for (const float v : d.keys) REQUIRE(std::isfinite(v));
  for (const float v : d.values) REQUIRE(std::isfinite(v));
  if (exact) {
    REQUIRE(d.keys[0] == 0.0f);
    REQUIRE(d.keys[100] == 65504.0f);
  } else {
    REQUIRE(std::fabs(d.keys[0] - mean) < 0.5f);
  }
}

/// A chunk that is cut anywhere, or in which any bit is another one, is refused.
template <class Reader, class Arrays>
void require_damage_told(const Bytes& good, const Arrays& arrays) {
  for (std::size_t n = 0; n < good.size(); ++n)
    REQUIRE(Reader::open(std::span(good).first(n), arrays).status() == Status::corrupt_data);
  for (std::size_t i = 0; i < good.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      Bytes bad = good;
      bad[i] ^= static_cast<std::byte>(1 << bit);
      const auto chunk = Reader::open(bad, arrays);
      const Status s = chunk ? chunk->check() : chunk.status();
      REQUIRE((s == Status::corrupt_data || (s == Status::incompatible && i >= 4 && i < 8)));
    }
}

/// A sink that stops at any byte, and memory that is refused at any request, write nothing wrong and keep nothing.
template <class Writer, class Method, class Arrays>
void require_faults_told(const Rows4& x, const Method& method, const Arrays& arrays, bool exact) {
  const Bytes good = chunk_of<Writer>(x, method, arrays, nullptr, exact);
  for (std::size_t room = 0; room < good.size(); room += 17) {
    auto writer = Writer::make(method, x.shape, arrays);
    ByteList sink;
    sink.room = room;
    REQUIRE(write_rows(x, *writer, sink, exact) == Status::io_error);
  }
  CountingMemory memory;
  for (long n = 0;; ++n) {
    memory.refuse_from = memory.requests + n;
    auto writer = Writer::make(method, x.shape, arrays, nullptr, memory);
    ByteList sink;
    const Status s = writer ? write_rows(x, *writer, sink, exact) : writer.status();
    memory.refuse_from = -1;
    if (s == Status::ok) {
      REQUIRE(sink.bytes == good);
      break;
    }
    REQUIRE(s == Status::out_of_memory);
  }
  REQUIRE(memory.live_bytes == 0);
  REQUIRE(memory.wrong_releases == 0);
}

}  // namespace kvcondense::test
