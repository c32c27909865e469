#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/random.hpp>
#include <kvcondense/io/cachegen.hpp>
#include <support/byte_list.hpp>
#include <support/fill.hpp>

namespace kvcondense::test {

using Bytes = std::vector<std::byte>;

/// Keys and values of all layers, [layer][head][token][dim] each, that walk slowly from token to token, wide in some channels.
struct Rows4 {
  CacheShape shape;
  index_t tokens;
  std::vector<float> keys, values;

  Rows4(const CacheShape& s, index_t n, std::uint64_t seed = 1) : shape(s), tokens(n) {
    const auto walk = [&](std::vector<float>& x, index_t dim) {
      x.resize(static_cast<std::size_t>(s.layers * s.kv_heads * n * dim));
      fill_normal(x.data(), x.size(), seed++);
      for (index_t row = 0; row < s.layers * s.kv_heads; ++row)
        for (index_t t = 0; t < n; ++t)
          for (index_t d = 0; d < dim; ++d) {
            float* at = x.data() + (row * n + t) * dim + d;
            *at = t == 0 ? *at : 0.8f * at[-dim] + 0.6f * *at;
          }
      for (std::size_t i = 0; i < x.size(); ++i) {
        const auto d = static_cast<index_t>(i) % dim;
        x[i] = static_cast<float>(half(x[i] * (d % 7 == 3 ? 4.0f : 0.5f) + (d % 5 == 1 ? 1.0f : 0.0f)));
      }
    };
    walk(keys, s.head_dim), walk(values, s.values());
  }
  index_t dim(io::KvSide side) const { return side == io::KvSide::keys ? shape.head_dim : shape.values(); }
  TensorView<const float, 3> rows(io::KvSide side, index_t layer) const {
    const auto& x = side == io::KvSide::keys ? keys : values;
    return dense_view(x.data() + layer * shape.kv_heads * tokens * dim(side), shape.kv_heads, tokens, dim(side));
  }
  TensorView<const float, 3> rows(io::KvSide side, index_t layer, index_t first, index_t n) const {
    auto v = rows(side, layer);
    v.data += first * v.stride[1], v.extent[1] = n;
    return v;
  }
  /// As one chunk.
  Bytes chunk(const quant::CacheGen& method, const io::CacheGenReader* tables = nullptr) const {
    auto writer = io::CacheGenWriter::make(method, shape, tables);
    REQUIRE(writer.status() == Status::ok);
    ByteList sink;
    REQUIRE(write(*writer, sink) == Status::ok);
    return sink.bytes;
  }
  Status write(io::CacheGenWriter& writer, ByteSink& sink) const {
    return writer.write(sink, {.tokens = tokens, .total = tokens}, [&](index_t layer, auto k, auto v) {
      std::copy_n(rows(io::KvSide::keys, layer).data, k.size(), k.data);
      std::copy_n(rows(io::KvSide::values, layer).data, v.size(), v.data);
      return Status::ok;
    });
  }
};

struct Decoded {
  std::vector<float> keys, values;
  friend bool operator==(const Decoded&, const Decoded&) = default;
};

/// Everything in a chunk, [layer][head][token][dim], sub-chunk by sub-chunk; `s` says why not.
/// decode(layer, side, sub_chunk, view) -> Status.
template <class Head, class Decode>
Decoded decode_parts(const Head& h, Status& s, Decode&& decode) {
  Decoded d;
  s = Status::ok;
  for (const auto side : {io::KvSide::keys, io::KvSide::values}) {
    auto& x = side == io::KvSide::keys ? d.keys : d.values;
    const index_t dim = h.dim(side), per_layer = h.kv_heads * h.tokens * dim;
    x.resize(static_cast<std::size_t>(h.layers * per_layer));
    for (index_t l = 0; l < h.layers; ++l)
      for (index_t sub = 0; sub < h.sub_chunks(); ++sub) {
        auto out = dense_view(x.data() + l * per_layer, index_t{h.kv_heads}, index_t{h.tokens}, dim);
        out.data += sub * h.sub_chunk * dim, out.extent[1] = h.tokens_of(sub);
        if (s == Status::ok) s = decode(l, side, sub, out);
      }
  }
  return d;
}
inline Decoded decode_all(const io::CacheGenReader& chunk, Status& s) {
  return decode_parts(chunk.head(), s, [&](index_t l, io::KvSide side, index_t sub, auto out) { return chunk.decode(l, side, sub, out); });
}
/// Of a chunk that was opened and is all there is in `bytes`; all(chunk, status) -> Decoded.
template <class Chunk, class All>
Decoded decode_whole(const Chunk& chunk, const Bytes& bytes, All&& all) {
  REQUIRE(chunk.status() == Status::ok);
  REQUIRE(chunk->bytes() == bytes.size());
  REQUIRE(chunk->check() == Status::ok);
  Status s = Status::ok;
  Decoded d = all(*chunk, s);
  REQUIRE(s == Status::ok);
  return d;
}
inline Decoded decode_all(const Bytes& bytes, const io::CacheGenReader* tables = nullptr) {
  return decode_whole(io::CacheGenReader::open(bytes, tables), bytes, [](const auto& c, Status& s) { return decode_all(c, s); });
}

/// Writes new checksums over a chunk of so many parts, so that a forged one is not refused for them.
inline void sign(Bytes& bytes, std::uint32_t parts) {
  const auto put = [&](std::size_t at, std::uint64_t v) { std::memcpy(bytes.data() + at, &v, 8); };
  Checksum head;
  head.add(std::span(bytes).first(80));
  put(80, head.value());
  std::size_t at = 88;
  for (std::uint32_t p = 0; p < parts && at + 16 <= bytes.size(); ++p) {
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data() + at, 8);
    if (length < 16 || length > bytes.size() - at) return;
    Checksum sum = io::ChunkParts::begin_sum(head.value(), p);
    sum.add(std::span(bytes).subspan(at + 8, length - 16));
    put(at + length - 8, sum.value());
    at += length;
  }
}

/// The same for CacheGen, which has two parts per layer.
inline void sign(Bytes& bytes) {
  std::uint32_t layers = 0;
  std::memcpy(&layers, bytes.data() + 16, 4);
  sign(bytes, 2 * layers);
}

inline double square_distance(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i] - b[i]), 2);
  return sum;
}

}  // namespace kvcondense::test
