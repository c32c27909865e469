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
